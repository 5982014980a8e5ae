/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Works for a while, then keeps what is queued to itself, so that the kernel's watchdog ejects
 * it: "runnable task stall".
 */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define STALL_DSQ 0

/* How long it works, in nanoseconds. */
const volatile u64 works_ns = 1000 * 1000 * 1000;

u64 started_at;
u64 nr_enqueued;
u64 nr_dispatched;
u64 nr_withheld;

void BPF_STRUCT_OPS(stall_enqueue, struct task_struct *p, u64 enq_flags)
{
	__sync_fetch_and_add(&nr_enqueued, 1);
	scx_bpf_dsq_insert(p, STALL_DSQ, SCX_SLICE_DFL, enq_flags);
}

void BPF_STRUCT_OPS(stall_dispatch, s32 cpu, struct task_struct *prev)
{
	if (bpf_ktime_get_ns() - started_at > works_ns) {
		__sync_fetch_and_add(&nr_withheld, 1);
		return;
	}
	if (scx_bpf_dsq_move_to_local(STALL_DSQ))
		__sync_fetch_and_add(&nr_dispatched, 1);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(stall_init)
{
	started_at = bpf_ktime_get_ns();
	return scx_bpf_create_dsq(STALL_DSQ, -1);
}

SCX_OPS_DEFINE(stall_ops,
	.enqueue	= (void *)stall_enqueue,
	.dispatch	= (void *)stall_dispatch,
	.init		= (void *)stall_init,
	.timeout_ms	= 1000,
	.name		= "stall");
