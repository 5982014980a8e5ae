/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Members that the kernel treats as more than bytes: a timer, a work, a lock, a list, a tree,
 * pointers that hold references. What the host should find behind them is written down beside
 * them in plain numbers.
 */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define ITEMS 5
#define LEAVES 7
#define CLOCK_MONOTONIC 1
#define HOUR 3600000000000ULL
#define container_of(at, type, member) ((type *)((void *)(at)-__builtin_offsetof(type, member)))

#define ENOENT 2
#define ENOMEM 12
#define NEW(type) bpf_obj_new_impl(__builtin_btf_type_id(*(type *)0, 0), 0)
#define NEW_PER_CPU(type) bpf_percpu_obj_new_impl(__builtin_btf_type_id(*(type *)0, 0), 0)

struct item {
	u64 value;
	struct bpf_list_node node;
	u64 twice;
};

struct leaf {
	struct bpf_refcount refs;
	u64 key;
	struct bpf_rb_node node;
};

struct note {
	u64 number;
	struct cgroup __kptr *group;
};

struct each {
	u64 number;
};

struct special {
	u64 before;
	struct bpf_timer timer;
	struct bpf_wq work;
	struct bpf_spin_lock lock;
	struct bpf_list_head items __contains(item, node);
	struct bpf_rb_root leaves __contains(leaf, node);
	struct task_struct __kptr *task;
	struct bpf_cpumask __kptr *mask;
	struct cgroup __kptr *group;
	struct note __kptr *note;
	struct each __percpu_kptr *each;
	u64 after;
};

/* [0] is never touched, the timer of [1] is armed, that of [2] only set up. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, u32);
	__type(value, struct special);
} specials SEC(".maps");

struct hashed {
	struct bpf_timer timer;
	u64 expires;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, struct hashed);
} timers SEC(".maps");

struct kept {
	struct bpf_cpumask __kptr *mask;
	u32 pid;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kept);
} storage SEC(".maps");

u64 items[ITEMS];
u64 leaves[LEAVES];
u64 expires;
u64 nr_worked;
u32 held_pid;
u64 held_cgroup;
u64 claimed;	/* one CPU holds, and it alone */
u64 nr_held;	/* 1 when everything is in its place */
u64 nr_masks;
u64 step;	/* how far the setting up came */

static int on_timer(void *map, u32 *key, struct bpf_timer *timer)
{
	return 0;
}

static int on_other_timer(void *map, u32 *key, struct bpf_timer *timer)
{
	return 0;
}

static int on_work(void *map, int *key, void *value)
{
	nr_worked++;
	return 0;
}

static bool less(struct bpf_rb_node *a, const struct bpf_rb_node *b)
{
	return container_of(a, struct leaf, node)->key < container_of(b, struct leaf, node)->key;
}

static __always_inline int fill_list(struct special *all)
{
	struct item *item;
	u32 i;

	for (i = 0; i < ITEMS; i++) {
		item = NEW(struct item);
		if (!item)
			return -ENOMEM;
		item->value = 1000 + i * i;
		item->twice = 2 * item->value;
		items[i] = item->value;
		bpf_spin_lock(&all->lock);
		bpf_list_push_back_impl(&all->items, &item->node, 0, 0);
		bpf_spin_unlock(&all->lock);
	}
	return 0;
}

/* The keys come in an order of their own. */
static __always_inline int fill_tree(struct special *all)
{
	struct leaf *leaf;
	u32 i;

	for (i = 0; i < LEAVES; i++) {
		leaf = NEW(struct leaf);
		if (!leaf)
			return -ENOMEM;
		leaf->key = (i * 5 + 3) % LEAVES * 11;
		leaves[i] = leaf->key;
		bpf_spin_lock(&all->lock);
		bpf_rbtree_add_impl(&all->leaves, &leaf->node, less, 0, 0);
		bpf_spin_unlock(&all->lock);
	}
	return 0;
}

static __always_inline int set_timers(struct special *all)
{
	struct hashed made = {}, *hashed;
	u32 key = 77, other = 2;
	struct special *idle = bpf_map_lookup_elem(&specials, &other);
	int error;

	if (!idle)
		return -ENOENT;
	expires = bpf_ktime_get_ns() + HOUR;
	error = bpf_timer_init(&all->timer, &specials, CLOCK_MONOTONIC) ?:
		bpf_timer_set_callback(&all->timer, on_timer) ?:
		bpf_timer_start(&all->timer, expires, BPF_F_TIMER_ABS) ?:
		bpf_timer_init(&idle->timer, &specials, CLOCK_MONOTONIC) ?:
		bpf_timer_set_callback(&idle->timer, on_other_timer);
	if (error)
		return error;
	error = bpf_map_update_elem(&timers, &key, &made, BPF_ANY);
	hashed = bpf_map_lookup_elem(&timers, &key);
	if (error || !hashed)
		return -ENOENT;
	hashed->expires = expires + HOUR;
	return bpf_timer_init(&hashed->timer, &timers, CLOCK_MONOTONIC) ?:
	       bpf_timer_set_callback(&hashed->timer, on_other_timer) ?:
	       bpf_timer_start(&hashed->timer, expires + HOUR, BPF_F_TIMER_ABS);
}

static __always_inline int set_each(struct special *all)
{
	struct each __percpu_kptr *each = NEW_PER_CPU(struct each);

	if (!each)
		return -ENOMEM;
	each = bpf_kptr_xchg(&all->each, each);
	if (each)
		bpf_percpu_obj_drop_impl(each, 0);
	return 0;
}

s32 BPF_STRUCT_OPS_SLEEPABLE(special_init)
{
	u32 key = 1;
	struct special *all = bpf_map_lookup_elem(&specials, &key);
	int error;

	if (!all)
		return -ENOENT;
	all->before = 0x1111111111111111ULL;
	all->after = 0x2222222222222222ULL;
	error = fill_list(all);
	step++;
	error = error ?: fill_tree(all);
	step++;
	error = error ?: set_timers(all);
	step++;
	error = error ?: set_each(all);
	step++;
	return error ?: bpf_wq_init(&all->work, &specials, 0) ?:
	       bpf_wq_set_callback(&all->work, on_work, 0) ?:
	       bpf_wq_start(&all->work, 0);
}

static __always_inline void hold(struct special *all, struct task_struct *p)
{
	u64 id = p->cgroups->dfl_cgrp->kn->id;
	struct bpf_cpumask *mask;
	struct task_struct *task;
	struct cgroup *group;
	struct note *note;
	struct each *each;
	u32 cpu;

	for (cpu = 0; cpu < 2; cpu++) {
		each = all->each ? bpf_per_cpu_ptr(all->each, cpu) : 0;
		if (each)
			each->number = 500 + cpu;
	}
	task = bpf_task_acquire(p);
	if (task)
		task = bpf_kptr_xchg(&all->task, task);
	if (task)
		bpf_task_release(task);
	mask = bpf_cpumask_create();
	if (mask) {
		bpf_cpumask_set_cpu(1, mask);
		mask = bpf_kptr_xchg(&all->mask, mask);
	}
	if (mask)
		bpf_cpumask_release(mask);
	note = NEW(struct note);
	if (note) {
		note->number = 0x3333333333333333ULL;
		group = bpf_cgroup_from_id(id);
		if (group)
			group = bpf_kptr_xchg(&note->group, group);
		if (group)
			bpf_cgroup_release(group);
		note = bpf_kptr_xchg(&all->note, note);
	}
	if (note)
		bpf_obj_drop_impl(note, 0);
	group = bpf_cgroup_from_id(id);
	if (group)
		group = bpf_kptr_xchg(&all->group, group);
	if (group)
		bpf_cgroup_release(group);
	held_pid = p->pid;
	held_cgroup = id;
	__sync_fetch_and_add(&nr_held, 1);
}

void BPF_STRUCT_OPS(special_running, struct task_struct *p)
{
	u32 key = 1;
	struct special *all = bpf_map_lookup_elem(&specials, &key);

	/* One that is not in the root of all cgroups. Two may begin to run at once. */
	if (all && p->cgroups->dfl_cgrp->kn->id != 1 &&
	    !__sync_val_compare_and_swap(&claimed, 0, 1))
		hold(all, p);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(special_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
	struct kept *kept = bpf_task_storage_get(&storage, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	struct bpf_cpumask *mask = bpf_cpumask_create();

	if (!mask)
		return -ENOMEM;
	if (p->pid & 1)
		bpf_cpumask_set_cpu(0, mask);
	if (p->pid & 2)
		bpf_cpumask_set_cpu(1, mask);
	if (kept) {
		kept->pid = p->pid;
		mask = bpf_kptr_xchg(&kept->mask, mask);
		nr_masks++;
	}
	if (mask)
		bpf_cpumask_release(mask);
	return 0;
}

void BPF_STRUCT_OPS(special_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SCX_OPS_DEFINE(special_ops,
	.enqueue	= (void *)special_enqueue,
	.running	= (void *)special_running,
	.init_task	= (void *)special_init_task,
	.init		= (void *)special_init,
	.name		= "special");
