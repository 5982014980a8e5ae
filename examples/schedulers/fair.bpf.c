/* SPDX-License-Identifier: GPL-2.0 */
/*
 * fair: tasks run in the order of their virtual time, which passes the slower the more weight a
 * task has. One queue is shared by all CPUs.
 *
 * It has ten bugs, of which one at a time can be built in, as -DBUG=3: each is of a kind that
 * schedulers really have, and shows in a course of samples rather than in one snapshot. See
 * scripts/course.rhai.
 */
#include "vmlinux.h"
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define STALLS 1   /* a counter stops for ever */
#define UNFAIR 2   /* weights are not looked at */
#define STICKY 3   /* tasks stay on the CPU where they ran first, whatever they may use now */
#define STARVES 4  /* light tasks run only when nothing else is there */
#define LEAKS 5    /* tasks that die stay in the map */
#define DRIFTS 6   /* tasks that were there before the scheduler are not counted */
#define BACKLOG 7  /* the count of queued tasks is not always taken back */
#define LONG 8     /* every other slice is ten times too long */
#define HOARDS 9   /* the last CPU hardly ever takes a task from the queue */
#define NARROW 10  /* a counter has eight bits only */

#ifndef BUG
#define BUG 0
#endif

#define QUEUE 0
#define LIGHT 1

const volatile u64 slice_ns = 5 * 1000 * 1000;
const volatile u32 nr_cpus = 2;

u64 vtime_now;
u64 nr_enqueued;
u64 nr_dispatched;
s64 nr_queued;
u64 nr_tasks;
u64 nr_running;
u64 nr_long;		/* runs that began with more than four slices */

struct task_ctx {
	u64 runtime_ns;
	u64 nr_runs;
	u64 started_at;
	u32 weight;
	s32 cpu;
	u64 is_queued;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, s32);
	__type(value, struct task_ctx);
} task_ctx SEC(".maps");

struct cpu_stats {
	u64 nr_running;
	u64 busy_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_stats);
} cpu_stats SEC(".maps");

static bool before(u64 a, u64 b)
{
	return (s64)(a - b) < 0;
}

static struct task_ctx *ctx_of(struct task_struct *p)
{
	s32 pid = p->pid;

	return bpf_map_lookup_elem(&task_ctx, &pid);
}

s32 BPF_STRUCT_OPS(fair_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool is_idle = false;

	return scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);
}

void BPF_STRUCT_OPS(fair_enqueue, struct task_struct *p, u64 enq_flags)
{
	u64 vtime = p->scx.dsq_vtime, slice = slice_ns, queue = QUEUE;
	struct task_ctx *ctx = ctx_of(p);
	s32 idle;

	if (BUG == NARROW)
		nr_enqueued = (nr_enqueued + 1) & 0xff;
	else
		__sync_fetch_and_add(&nr_enqueued, 1);
	if (ctx && !ctx->is_queued) {
		ctx->is_queued = 1;
		__sync_fetch_and_add(&nr_queued, 1);
	}
	/* Who slept for long has no credit for all of it. */
	if (before(vtime, vtime_now - slice_ns))
		vtime = vtime_now - slice_ns;
	if (BUG == LONG && ctx && ctx->nr_runs % 2)
		slice *= 10;
	if (BUG == STARVES && p->scx.weight < 50)
		queue = LIGHT;
	if (BUG == STICKY && ctx && ctx->cpu >= 0 && p->nr_cpus_allowed > 1 &&
	    bpf_cpumask_test_cpu(ctx->cpu, p->cpus_ptr)) {
		/* It is pulled back to where it ran first. */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL_ON | ctx->cpu, slice, enq_flags);
		return;
	}
	scx_bpf_dsq_insert_vtime(p, queue, slice, vtime, enq_flags);
	/* Nobody wakes a CPU for a task that just lost its own, or that may use more of them now. */
	idle = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (idle >= 0)
		scx_bpf_kick_cpu(idle, SCX_KICK_IDLE);
}

void BPF_STRUCT_OPS(fair_dispatch, s32 cpu, struct task_struct *prev)
{
	if (BUG == HOARDS && nr_cpus > 1 && cpu == nr_cpus - 1 && nr_enqueued % 64)
		return;
	if (!scx_bpf_dsq_move_to_local(QUEUE) &&
	    !(BUG == STARVES && scx_bpf_dsq_move_to_local(LIGHT)))
		return;
	if (BUG != STALLS || nr_dispatched < 40)
		__sync_fetch_and_add(&nr_dispatched, 1);
}

/* It is no longer queued, however that came about. */
static void taken(struct task_ctx *ctx)
{
	if (!ctx->is_queued)
		return;
	ctx->is_queued = 0;
	if (BUG != BACKLOG || ctx->nr_runs % 2)
		__sync_fetch_and_sub(&nr_queued, 1);
}

void BPF_STRUCT_OPS(fair_running, struct task_struct *p)
{
	struct task_ctx *ctx = ctx_of(p);
	struct cpu_stats *cpu;
	u32 zero = 0;

	if (before(vtime_now, p->scx.dsq_vtime))
		vtime_now = p->scx.dsq_vtime;
	__sync_fetch_and_add(&nr_running, 1);
	/* What it was given, not what it took: a CPU of a VM may be held up. */
	if (p->scx.slice > 4 * slice_ns)
		__sync_fetch_and_add(&nr_long, 1);
	cpu = bpf_map_lookup_elem(&cpu_stats, &zero);
	if (cpu)
		cpu->nr_running++;
	if (!ctx)
		return;
	taken(ctx);
	ctx->started_at = bpf_ktime_get_ns();
	if (BUG != STICKY || ctx->cpu < 0)
		ctx->cpu = bpf_get_smp_processor_id();
}

void BPF_STRUCT_OPS(fair_stopping, struct task_struct *p, bool runnable)
{
	struct task_ctx *ctx = ctx_of(p);
	struct cpu_stats *cpu;
	u32 zero = 0;
	u64 ran;

	if (!ctx || !ctx->started_at)
		return;
	ran = bpf_ktime_get_ns() - ctx->started_at;
	ctx->started_at = 0;
	ctx->runtime_ns += ran;
	ctx->nr_runs++;
	cpu = bpf_map_lookup_elem(&cpu_stats, &zero);
	if (cpu)
		cpu->busy_ns += ran;
	p->scx.dsq_vtime += ran * 100 / (BUG == UNFAIR ? 100 : p->scx.weight);
}

void BPF_STRUCT_OPS(fair_enable, struct task_struct *p)
{
	p->scx.dsq_vtime = vtime_now;
}

s32 BPF_STRUCT_OPS(fair_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx ctx = { .weight = p->scx.weight, .cpu = -1 };
	s32 pid = p->pid;

	bpf_map_update_elem(&task_ctx, &pid, &ctx, BPF_ANY);
	if (BUG != DRIFTS || args->fork)
		__sync_fetch_and_add(&nr_tasks, 1);
	return 0;
}

void BPF_STRUCT_OPS(fair_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct task_ctx *ctx = ctx_of(p);
	s32 pid = p->pid;

	if (ctx)
		taken(ctx);
	if (BUG != LEAKS)
		bpf_map_delete_elem(&task_ctx, &pid);
	__sync_fetch_and_sub(&nr_tasks, 1);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fair_init)
{
	s32 err = scx_bpf_create_dsq(QUEUE, -1);

	return err ? err : scx_bpf_create_dsq(LIGHT, -1);
}

SCX_OPS_DEFINE(fair_ops,
	.select_cpu	= (void *)fair_select_cpu,
	.enqueue	= (void *)fair_enqueue,
	.dispatch	= (void *)fair_dispatch,
	.running	= (void *)fair_running,
	.stopping	= (void *)fair_stopping,
	.enable		= (void *)fair_enable,
	.init_task	= (void *)fair_init_task,
	.exit_task	= (void *)fair_exit_task,
	.init		= (void *)fair_init,
	.name		= "fair");
