/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Values of every shape, pointers among them: those that the verifier knows, and addresses in
 * plain numbers. What the host should find behind them stands beside them in plain words.
 */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

enum wide {
	WIDE_SMALL = 1,
	WIDE_LARGE = 0x8000000000000001ULL,
};

struct shape {
	u64 task;	/* the task's address, whoever writes it */
	u64 mixed;	/* the task's address at times, the time at others */
	u64 group;	/* the address of what the task's threads share */
	u32 pid;
	u32 low : 3, middle : 13, high : 16;
	s32 negative : 5;
	union {
		u64 whole;
		struct {
			u32 first;
			u32 second;
		};
	} both;
	enum wide wide;
	struct {
		s16 x, y;
	} points[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, struct shape);
} shapes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u64);
} selves SEC(".maps");

/* An object of the program's own, which leads back to one of the kernel's. */
struct mine {
	struct task_struct *task;
	u64 value;
};

struct held {
	struct task_struct __kptr *task;
	struct bpf_cpumask __kptr *mask;
	struct mine __kptr *mine;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, struct held);
} holder SEC(".maps");

u64 last;		/* the task that ran last */
u64 nr_running;
u64 claimed;		/* one CPU holds, and it alone */
u32 held_pid;		/* when everything is in its place */
u64 counts[8];
u32 nr_failures;

s32 BPF_STRUCT_OPS_SLEEPABLE(shapes_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
	u32 pid = p->pid;
	struct shape made = {
		.task = (u64)p,
		.mixed = (u64)p,
		.group = (u64)p->group_leader,
		.pid = pid,
		.low = 5,
		.middle = pid,
		.high = 0xfffe,
		.negative = -3,
		.both.whole = 0x1122334455667788ULL,
		.wide = pid & 1 ? WIDE_LARGE : WIDE_SMALL,
		.points = { { 1, -1 }, { 2, -2 }, { pid, -(s16)pid } },
	};
	u64 *self = bpf_task_storage_get(&selves, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (bpf_map_update_elem(&shapes, &pid, &made, BPF_ANY))
		nr_failures++;
	if (self)
		*self = (u64)p;
	return 0;
}

void BPF_STRUCT_OPS(shapes_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	u32 pid = p->pid;

	bpf_map_delete_elem(&shapes, &pid);
}

static __always_inline void hold(struct task_struct *p)
{
	struct bpf_cpumask *mask;
	struct task_struct *task;
	struct mine *mine;
	struct held *held;
	u32 key = 1;

	held = bpf_map_lookup_elem(&holder, &key);
	if (!held)
		return;
	task = bpf_task_acquire(p);
	if (task)
		task = bpf_kptr_xchg(&held->task, task);
	if (task)
		bpf_task_release(task);
	mine = bpf_obj_new_impl(__builtin_btf_type_id(*(struct mine *)0, 0), 0);
	if (mine) {
		mine->task = p;
		mine->value = 0x1122334455667788ULL;
		mine = bpf_kptr_xchg(&held->mine, mine);
	}
	if (mine)
		bpf_obj_drop_impl(mine, 0);
	mask = bpf_cpumask_create();
	if (!mask)
		return;
	bpf_cpumask_set_cpu(0, mask);
	bpf_cpumask_set_cpu(p->pid & 1 ? 1 : 0, mask);
	mask = bpf_kptr_xchg(&held->mask, mask);
	if (mask)
		bpf_cpumask_release(mask);
	__sync_fetch_and_add(&held_pid, p->pid);
}

void BPF_STRUCT_OPS(shapes_running, struct task_struct *p)
{
	u32 pid = p->pid;
	struct shape *shape = bpf_map_lookup_elem(&shapes, &pid);

	last = (u64)p;
	counts[nr_running++ & 7]++;
	if (!shape)
		return;
	shape->mixed = bpf_ktime_get_ns();
	shape->task = (u64)p;
	/* Two may begin to run at once. */
	if (!__sync_val_compare_and_swap(&claimed, 0, 1))
		hold(p);
}

void BPF_STRUCT_OPS(shapes_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SCX_OPS_DEFINE(shapes_ops,
	.enqueue	= (void *)shapes_enqueue,
	.running	= (void *)shapes_running,
	.init_task	= (void *)shapes_init_task,
	.exit_task	= (void *)shapes_exit_task,
	.name		= "shapes");
