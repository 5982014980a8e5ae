/* SPDX-License-Identifier: GPL-2.0 */
/*
 * lanes: tasks of ordinary weight wait in a fast lane, light ones in a slow lane.
 *
 * It has a bug, which the tutorial finds.
 */
#include "vmlinux.h"
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define FAST 0
#define SLOW 1

const volatile u64 slice_ns = 5 * 1000 * 1000;

u64 nr_fast;		/* how often a task came into the fast lane */
u64 nr_slow;		/* .. and into the slow one */
u64 nr_turns;		/* how often a CPU asked for a task */

void BPF_STRUCT_OPS(lanes_enqueue, struct task_struct *p, u64 enq_flags)
{
	if (p->scx.weight < 100) {
		__sync_fetch_and_add(&nr_slow, 1);
		scx_bpf_dsq_insert(p, SLOW, slice_ns, enq_flags);
	} else {
		__sync_fetch_and_add(&nr_fast, 1);
		scx_bpf_dsq_insert(p, FAST, slice_ns, enq_flags);
	}
}

void BPF_STRUCT_OPS(lanes_dispatch, s32 cpu, struct task_struct *prev)
{
	__sync_fetch_and_add(&nr_turns, 1);
	if (scx_bpf_dsq_move_to_local(FAST))
		return;
	scx_bpf_dsq_move_to_local(SLOW);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(lanes_init)
{
	s32 err = scx_bpf_create_dsq(FAST, -1);

	return err ? err : scx_bpf_create_dsq(SLOW, -1);
}

SCX_OPS_DEFINE(lanes_ops,
	.enqueue	= (void *)lanes_enqueue,
	.dispatch	= (void *)lanes_dispatch,
	.init		= (void *)lanes_init,
	.name		= "lanes");
