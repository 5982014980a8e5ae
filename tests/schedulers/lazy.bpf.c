/* SPDX-License-Identifier: GPL-2.0 */
/* Works for a while, then takes nothing out of its queue any more. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define LAZY_DSQ 7

/* How long it works, in nanoseconds. */
const volatile u64 works_ns = 1000 * 1000 * 1000;

u64 started_at;
u64 nr_enqueued;
u64 nr_dispatched;

s32 BPF_STRUCT_OPS(lazy_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	return prev_cpu;
}

void BPF_STRUCT_OPS(lazy_enqueue, struct task_struct *p, u64 enq_flags)
{
	__sync_fetch_and_add(&nr_enqueued, 1);
	scx_bpf_dsq_insert(p, LAZY_DSQ, SCX_SLICE_DFL, enq_flags);
}

void BPF_STRUCT_OPS(lazy_dispatch, s32 cpu, struct task_struct *prev)
{
	if (bpf_ktime_get_ns() - started_at > works_ns)
		return;
	if (scx_bpf_dsq_move_to_local(LAZY_DSQ))
		__sync_fetch_and_add(&nr_dispatched, 1);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(lazy_init)
{
	started_at = bpf_ktime_get_ns();
	return scx_bpf_create_dsq(LAZY_DSQ, -1);
}

SCX_OPS_DEFINE(lazy_ops,
	.select_cpu	= (void *)lazy_select_cpu,
	.enqueue	= (void *)lazy_enqueue,
	.dispatch	= (void *)lazy_dispatch,
	.init		= (void *)lazy_init,
	.flags		= SCX_OPS_SWITCH_PARTIAL | SCX_OPS_ENQ_LAST,
	.name		= "lazy");
