/* SPDX-License-Identifier: GPL-2.0 */
/* Does not compile: a name that nothing declares, and no semicolon after a statement. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

void BPF_STRUCT_OPS(broken_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBL, SCX_SLICE_DFL, enq_flags)
}

SCX_OPS_DEFINE(broken_ops, .enqueue = (void *)broken_enqueue, .name = "broken_syntax");
