/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A map of every kind that can be read, with every size of value. What the host reads from RAM
 * is compared with what the kernel itself says, so maps are filled such that mistakes show: every
 * byte depends on the map, the key, the CPU and its own place, and of the entries that are put
 * into hashes every seventh is taken out again, so that stale elements lie about.
 *
 * When sched_ext has enabled it, the maps do not change any more; variables do.
 */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define NR_KEYS 24
#define NR_BIG_KEYS 14000
#define MAX_CPUS 64

/* Sections of variables: initialized, zero, constant, and one of our own. */
u64 initialized = 0x1122334455667788;
u64 nr_enqueued;
const volatile u32 constant = 4242;

struct point {
	s32 x;
	s32 y;
};

struct point table[4] SEC(".data.custom") = { { 1, -1 }, { 2, -2 }, { 3, -3 }, { 4, -4 } };
u64 custom_counter SEC(".data.custom") = 7;

/* Updates that failed. Maps that allocate for each entry may refuse some when filled this fast. */
u64 nr_failures;

#define VALUE(size) \
	struct value_##size { u8 bytes[size]; }
VALUE(1);
VALUE(2);
VALUE(4);
VALUE(8);
VALUE(12);
VALUE(4000);

/* What entries are put in with, before they are filled in place. */
struct value_4000 zeroes;

/* Small values byte by byte; the large one by words, which is less for the verifier to do. */
static __always_inline void fill(void *value, u32 size, u32 number, u32 key, u32 cpu)
{
	u32 state = (number << 20) ^ (key << 8) ^ cpu ^ 0x9e3779b9;
	u8 *bytes = value;
	u64 *words = value;
	u32 i;

	if (size % 8 == 0) {
		for (i = 0; i < size / 8; i++) {
			state = state * 1664525 + 1013904223;
			words[i] = state * 0x9e3779b97f4a7c15ULL;
		}
	} else {
		for (i = 0; i < size; i++) {
			state = state * 1664525 + 1013904223;
			bytes[i] = state >> 24;
		}
	}
}

/* How each group of kinds is filled: called by bpf_loop for each key. */

#define ONE(map, size, number)                                  \
	static long fill_##map(u32 key, void *unused)           \
	{                                                       \
		void *value;                                    \
		put(&map, &key);                                \
		value = bpf_map_lookup_elem(&map, &key);        \
		if (value)                                      \
			fill(value, size, number, key, 0);      \
		take_out(&map, &key);                           \
		return 0;                                       \
	}

#define PER_CPU(map, size, number)                                       \
	static long fill_cpu_##map(u32 cpu, u32 *key)                    \
	{                                                                \
		void *value;                                             \
		u32 k = *key;                                            \
		value = bpf_map_lookup_percpu_elem(&map, &k, cpu);       \
		if (!value)                                              \
			return 1;                                        \
		fill(value, size, number, k, cpu);                       \
		return 0;                                                \
	}                                                                \
	static long fill_##map(u32 key, void *unused)                    \
	{                                                                \
		put(&map, &key);                                         \
		bpf_loop(MAX_CPUS, fill_cpu_##map, &key, 0);             \
		take_out(&map, &key);                                    \
		return 0;                                                \
	}

static __always_inline void put(void *map, u32 *key)
{
	if (bpf_map_update_elem(map, key, &zeroes, BPF_ANY))
		nr_failures++;
}

/* Arrays refuse, which is as good. */
static __always_inline void take_out(void *map, u32 *key)
{
	if (*key % 7 == 0)
		bpf_map_delete_elem(map, key);
}

#define DECLARE(map, kind, size, flags)             \
	struct {                                    \
		__uint(type, BPF_MAP_TYPE_##kind);  \
		__uint(map_flags, flags);           \
		__uint(max_entries, NR_KEYS * 2);   \
		__type(key, u32);                   \
		__type(value, struct value_##size); \
	} map SEC(".maps");

#define SIZE(prefix, kind, size, flags, how, number) \
	DECLARE(prefix##_##size, kind, size, flags)  \
	how(prefix##_##size, size, number)

#define KIND(prefix, kind, flags, how, number)         \
	SIZE(prefix, kind, 1, flags, how, number)      \
	SIZE(prefix, kind, 2, flags, how, number + 1)  \
	SIZE(prefix, kind, 4, flags, how, number + 2)  \
	SIZE(prefix, kind, 8, flags, how, number + 3)  \
	SIZE(prefix, kind, 12, flags, how, number + 4) \
	SIZE(prefix, kind, 4000, flags, how, number + 5)

KIND(arr, ARRAY, 0, ONE, 10)
KIND(hash, HASH, 0, ONE, 20)
KIND(lazy, HASH, BPF_F_NO_PREALLOC, ONE, 30)
KIND(lru, LRU_HASH, 0, ONE, 40)
KIND(pc_arr, PERCPU_ARRAY, 0, PER_CPU, 50)
KIND(pc_hash, PERCPU_HASH, 0, PER_CPU, 60)
KIND(pc_lazy, PERCPU_HASH, BPF_F_NO_PREALLOC, PER_CPU, 70)
KIND(pc_lru, LRU_PERCPU_HASH, 0, PER_CPU, 80)

/* Many entries; a struct as key, and one with a struct in it as value. */
struct big_key {
	u32 id;
	u16 part;
	u8 tag[6];
};

struct big_value {
	u64 sum;
	struct point at;
	bool odd;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NR_BIG_KEYS);
	__type(key, struct big_key);
	__type(value, struct big_value);
} big SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, NR_BIG_KEYS);
	__type(key, u64);
	__type(value, u64);
} big_lazy SEC(".maps");

static long fill_big(u32 i, void *unused)
{
	struct big_key key = { .id = i, .part = i * 3, .tag = { i, i >> 8, 3, 4, 5, 6 } };
	struct big_value value = { .sum = i * 1000000007ULL, .at = { i, -(s32)i }, .odd = i & 1 };
	u64 lazy_key = i * 0x100000001ULL, lazy_value = ~value.sum;

	if (bpf_map_update_elem(&big, &key, &value, BPF_ANY))
		nr_failures++;
	if (bpf_map_update_elem(&big_lazy, &lazy_key, &lazy_value, BPF_ANY))
		nr_failures++;
	if (i % 7 == 0) {
		bpf_map_delete_elem(&big, &key);
		bpf_map_delete_elem(&big_lazy, &lazy_key);
	}
	return 0;
}

/*
 * Records of many lengths, of which every fifth is discarded.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

static long fill_ring(u32 i, void *unused)
{
	u8 *record;
	u32 j;

	if (i % 5 == 4) {
		record = bpf_ringbuf_reserve(&ring, 24, 0);
		if (record)
			bpf_ringbuf_discard(record, 0);
		return 0;
	}
	if (i % 2) {
		record = bpf_ringbuf_reserve(&ring, 13, 0);
		if (!record) {
			nr_failures++;
			return 0;
		}
		for (j = 0; j < 13; j++)
			record[j] = i * 7 + j;
		bpf_ringbuf_submit(record, 0);
	} else if (bpf_ringbuf_output(&ring, &i, sizeof(i), 0)) {
		nr_failures++;
	}
	return 0;
}

/* Even numbers are in it. */
#define NR_IN_BLOOM 200

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, NR_IN_BLOOM);
	__uint(map_extra, 3);
	__type(value, u64);
} bloom SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__uint(max_entries, NR_IN_BLOOM);
	__type(value, struct value_12);
} bloom_12 SEC(".maps");

static long fill_blooms(u32 i, void *unused)
{
	u64 number = 2 * i;
	struct value_12 value = {};

	value.bytes[0] = 2 * i;
	value.bytes[11] = (2 * i) >> 8;
	if (bpf_map_push_elem(&bloom, &number, 0) || bpf_map_push_elem(&bloom_12, &value, 0))
		nr_failures++;
	return 0;
}

/* What each cgroup has in its storage stands by its id in a hash too. */
struct group_note {
	u64 id;
	u64 mixed;
};

struct {
	__uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct group_note);
} group_notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct group_note);
} groups_noted SEC(".maps");

static void *(*const bpf_cgrp_storage_get)(void *map, struct cgroup *cgroup, void *value,
					   u64 flags) = (void *)BPF_FUNC_cgrp_storage_get;

s32 BPF_STRUCT_OPS_SLEEPABLE(zoo_cgroup_init, struct cgroup *cgrp, struct scx_cgroup_init_args *args)
{
	u64 id = cgrp->kn->id;
	struct group_note *note, made = { .id = id, .mixed = id * 0x9e3779b97f4a7c15ULL };

	note = bpf_cgrp_storage_get(&group_notes, cgrp, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!note) {
		nr_failures++;
		return 0;
	}
	*note = made;
	if (bpf_map_update_elem(&groups_noted, &id, &made, BPF_ANY))
		nr_failures++;
	return 0;
}

/* Filled by user space, for sockets and files of its own. */
#define STORAGE(map, kind)                              \
	struct {                                        \
		__uint(type, BPF_MAP_TYPE_##kind);      \
		__uint(map_flags, BPF_F_NO_PREALLOC);   \
		__type(key, int);                       \
		__type(value, struct value_12);         \
	} map SEC(".maps");

STORAGE(sockets, SK_STORAGE)
STORAGE(inodes, INODE_STORAGE)

/* 20 values of three bytes are put in, five in between taken out: 1000, 1001, .. */
#define QUEUE(map, kind)                        \
	struct {                                \
		__uint(type, kind);             \
		__uint(max_entries, 16);        \
		__type(value, struct number);   \
	} map SEC(".maps");

struct number {
	u8 low, high, check;
};

QUEUE(queue, BPF_MAP_TYPE_QUEUE)
QUEUE(stack, BPF_MAP_TYPE_STACK)

static __always_inline void push(void *map, u32 i)
{
	struct number n = { .low = 1000 + i, .high = (1000 + i) >> 8, .check = ~i };

	if (bpf_map_push_elem(map, &n, 0))
		nr_failures++;
}

static long fill_queues(u32 i, void *unused)
{
	struct number n;

	push(&queue, i);
	push(&stack, i);
	if (i >= 10 && i < 15) {
		bpf_map_pop_elem(&queue, &n);
		bpf_map_pop_elem(&stack, &n);
	}
	return 0;
}

/* Prefixes of many lengths, some inside of others, and what branches only. */
struct prefix {
	u32 len;
	u8 data[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct prefix);
	__type(value, struct value_12);
} trie SEC(".maps");

static long fill_trie(u32 i, void *unused)
{
	struct prefix key = { .len = (i * 5) % 49 };
	struct value_12 value;
	u32 j, mixed = i * 0x9e3779b9;

	for (j = 0; j < 6; j++)
		key.data[j] = j < 4 ? mixed >> (8 * j) : i;
	fill(&value, sizeof(value), 99, i, 0);
	if (bpf_map_update_elem(&trie, &key, &value, BPF_ANY))
		nr_failures++;
	if (i % 7 == 0)
		bpf_map_delete_elem(&trie, &key);
	return 0;
}

/* What every task has in its storage stands by its id in a hash too. */
struct task_note {
	u64 made;
	u32 pid;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_note);
} notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, struct task_note);
} noted SEC(".maps");

s32 BPF_STRUCT_OPS_SLEEPABLE(zoo_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	u32 pid = p->pid;
	struct task_note *note, made = { .made = bpf_ktime_get_ns(), .pid = pid };

	__builtin_memcpy(made.comm, p->comm, sizeof(made.comm));
	note = bpf_task_storage_get(&notes, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!note) {
		nr_failures++;
		return 0;
	}
	*note = made;
	if (bpf_map_update_elem(&noted, &pid, &made, BPF_ANY))
		nr_failures++;
	return 0;
}

/* Maps and programs in maps. */
struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, u32);
	__type(value, u64);
} inner_a SEC(".maps");

struct inner inner_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 5);
	__type(key, u32);
	__array(values, struct inner);
} outer_array SEC(".maps") = {
	.values = { [1] = &inner_a, [4] = &inner_b },
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 5);
	__type(key, u32);
	__array(values, struct inner);
} outer_hash SEC(".maps") = {
	.values = { [0] = &inner_b, [2] = &inner_a, [3] = &inner_b },
};

SEC("tc")
int tail_one(struct __sk_buff *skb)
{
	return 1;
}

SEC("tc")
int tail_two(struct __sk_buff *skb)
{
	return 2;
}

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 9);
	__type(key, u32);
	__array(values, int(void *));
} programs SEC(".maps") = {
	.values = { [2] = (void *)&tail_one, [7] = (void *)&tail_two },
};

/* A program has to use a map for the map to be made. */
SEC("tc")
int uses_all(struct __sk_buff *skb)
{
	u32 key = 1;

	bpf_tail_call(skb, &programs, 2);
	return !!bpf_map_lookup_elem(&outer_array, &key) + !!bpf_map_lookup_elem(&outer_hash, &key);
}

#define FILL(map) bpf_loop(NR_KEYS, fill_##map, 0, 0)
#define FILL_KIND(prefix)     \
	FILL(prefix##_1);     \
	FILL(prefix##_2);     \
	FILL(prefix##_4);     \
	FILL(prefix##_8);     \
	FILL(prefix##_12);    \
	FILL(prefix##_4000)

s32 BPF_STRUCT_OPS_SLEEPABLE(zoo_init)
{
	FILL_KIND(arr);
	FILL_KIND(hash);
	FILL_KIND(lazy);
	FILL_KIND(lru);
	FILL_KIND(pc_arr);
	FILL_KIND(pc_hash);
	FILL_KIND(pc_lazy);
	FILL_KIND(pc_lru);
	bpf_loop(NR_BIG_KEYS, fill_big, 0, 0);
	bpf_loop(20, fill_queues, 0, 0);
	bpf_loop(100, fill_trie, 0, 0);
	bpf_loop(40, fill_ring, 0, 0);
	table[3].x = constant;
	return 0;
}

void BPF_STRUCT_OPS(zoo_enqueue, struct task_struct *p, u64 enq_flags)
{
	/* Sleepable programs may not use filters. */
	if (!__sync_fetch_and_add(&nr_enqueued, 1))
		bpf_loop(NR_IN_BLOOM, fill_blooms, 0, 0);
	__sync_fetch_and_add(&custom_counter, 1);
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SCX_OPS_DEFINE(zoo_ops,
	.enqueue	= (void *)zoo_enqueue,
	.init		= (void *)zoo_init,
	.init_task	= (void *)zoo_init_task,
	.cgroup_init	= (void *)zoo_cgroup_init,
	.name		= "zoo");
