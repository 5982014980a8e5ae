/* SPDX-License-Identifier: GPL-2.0 */
/* Compiles, but the verifier rejects it: a value that may not be there is used unchecked. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, s32);
	__type(value, u64);
} counts SEC(".maps");

void BPF_STRUCT_OPS(broken_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 pid = p->pid;
	u64 *count = bpf_map_lookup_elem(&counts, &pid);

	*count += 1;
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SCX_OPS_DEFINE(broken_ops, .enqueue = (void *)broken_enqueue, .name = "broken_verifier");
