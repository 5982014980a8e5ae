/* SPDX-License-Identifier: GPL-2.0 */
/* Works for a while, then ends itself with an error. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

/* How long it works, in nanoseconds. */
const volatile u64 works_ns = 1000 * 1000 * 1000;

u64 started_at;
u64 nr_enqueued;
/* What that was when it had enough. */
u64 nr_at_error;
/* Whether the kernel has told it to leave. */
u64 left;

static void leave_when_due(struct task_struct *p)
{
	u64 ran = bpf_ktime_get_ns() - started_at;

	if (ran > works_ns) {
		__sync_val_compare_and_swap(&nr_at_error, 0, nr_enqueued);
		scx_bpf_error("had enough of pid %d after %llu ms", p->pid, ran / 1000000);
	}
}

/* A task that is alone just keeps running: it is never put into a queue again. */
void BPF_STRUCT_OPS(exits_tick, struct task_struct *p)
{
	leave_when_due(p);
}

void BPF_STRUCT_OPS(exits_enqueue, struct task_struct *p, u64 enq_flags)
{
	__sync_fetch_and_add(&nr_enqueued, 1);
	leave_when_due(p);
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

s32 BPF_STRUCT_OPS(exits_init)
{
	started_at = bpf_ktime_get_ns();
	return 0;
}

void BPF_STRUCT_OPS(exits_exit, struct scx_exit_info *ei)
{
	left = 1;
}

SCX_OPS_DEFINE(exits_ops,
	.enqueue	= (void *)exits_enqueue,
	.tick		= (void *)exits_tick,
	.init		= (void *)exits_init,
	.exit		= (void *)exits_exit,
	.name		= "exits");
