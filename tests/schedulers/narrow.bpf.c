/* SPDX-License-Identifier: GPL-2.0 */
/* Declares of struct_ops only what it uses: there is no place for a cgroup's id. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

struct sched_ext_ops___narrow {
	void (*enqueue)(struct task_struct *p, u64 enq_flags);
	char name[128];
};

void BPF_STRUCT_OPS(narrow_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SEC(".struct_ops.link") struct sched_ext_ops___narrow narrow_ops = {
	.enqueue	= (void *)narrow_enqueue,
	.name		= "narrow",
};
