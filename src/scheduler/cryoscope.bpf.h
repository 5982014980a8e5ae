/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * What a sched_ext scheduler in one file needs besides the kernel's types: how maps are declared,
 * the BPF helpers that schedulers use, and macros for struct_ops. Built into cryoscope, which
 * puts it on the include path together with a vmlinux.h made from the kernel under test.
 *
 * Names are those that sched_ext schedulers use everywhere, so a scheduler that outgrows this
 * header can move to the ones of libbpf and scx by changing its #include lines.
 *
 * Kernel functions (scx_bpf_*) and constants (SCX_*) are declared by vmlinux.h, exactly as the
 * kernel under test has them.
 */
#ifndef CRYOSCOPE_BPF_H
#define CRYOSCOPE_BPF_H

#include "vmlinux.h"

/* Sections, and how libbpf reads declarations. */

#define SEC(name) __attribute__((section(name), used))

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif
#define __hidden __attribute__((visibility("hidden")))
#define __kptr __attribute__((btf_type_tag("kptr")))
#define __kptr_untrusted __attribute__((btf_type_tag("kptr_untrusted")))
#define __percpu_kptr __attribute__((btf_type_tag("percpu_kptr")))
/* What a bpf_list_head or a bpf_rb_root holds: structs of that name, by the node that they have. */
#define __contains(name, node) __attribute__((btf_decl_tag("contains:" #name ":" #node)))
#define __kconfig __attribute__((section(".kconfig")))

/*
 * A map is a variable in section ".maps" whose type says everything: libbpf reads numbers from
 * the length of an array and types from what a pointer points to. No instance is ever used.
 */
#define __uint(name, value) int (*name)[value]
#define __type(name, of) typeof(of) *name
#define __array(name, of) typeof(of) *name[]

/*
 * Helpers: functions of the kernel that are called by number. The numbers come from the
 * kernel's own enum, so a helper that it does not have is a compiler error and not a crash.
 */
#define __bpf_helper(ret, name, ...) \
	static ret (*const bpf_##name)(__VA_ARGS__) = (void *)BPF_FUNC_##name

__bpf_helper(void *, map_lookup_elem, void *map, const void *key);
__bpf_helper(long, map_update_elem, void *map, const void *key, const void *value, u64 flags);
__bpf_helper(long, map_delete_elem, void *map, const void *key);
__bpf_helper(void *, per_cpu_ptr, const void *pointer, u32 cpu);
__bpf_helper(void *, map_lookup_percpu_elem, void *map, const void *key, u32 cpu);
__bpf_helper(long, map_push_elem, void *map, const void *value, u64 flags);
__bpf_helper(long, map_pop_elem, void *map, void *value);
__bpf_helper(long, map_peek_elem, void *map, void *value);
__bpf_helper(long, tail_call, void *context, void *prog_array, u32 index);
__bpf_helper(long, for_each_map_elem, void *map, void *callback, void *context, u64 flags);
__bpf_helper(void *, task_storage_get, void *map, struct task_struct *task, void *value, u64 flags);
__bpf_helper(long, task_storage_delete, void *map, struct task_struct *task);
__bpf_helper(void *, ringbuf_reserve, void *ringbuf, u64 size, u64 flags);
__bpf_helper(void, ringbuf_submit, void *record, u64 flags);
__bpf_helper(void, ringbuf_discard, void *record, u64 flags);
__bpf_helper(void *, kptr_xchg, void *to, void *pointer);
__bpf_helper(long, ringbuf_output, void *ringbuf, void *data, u64 size, u64 flags);
__bpf_helper(u64, ktime_get_ns, void);
__bpf_helper(u32, get_smp_processor_id, void);
__bpf_helper(u32, get_prandom_u32, void);
__bpf_helper(u64, get_current_pid_tgid, void);
__bpf_helper(struct task_struct *, get_current_task_btf, void);
__bpf_helper(long, loop, u32 iterations, void *callback, void *context, u64 flags);
__bpf_helper(long, probe_read_kernel, void *to, u32 size, const void *from);
__bpf_helper(long, probe_read_kernel_str, void *to, u32 size, const void *from);
__bpf_helper(long, spin_lock, struct bpf_spin_lock *lock);
__bpf_helper(long, spin_unlock, struct bpf_spin_lock *lock);
__bpf_helper(long, timer_init, struct bpf_timer *timer, void *map, u64 clock);
__bpf_helper(long, timer_set_callback, struct bpf_timer *timer, void *callback);
__bpf_helper(long, timer_start, struct bpf_timer *timer, u64 nsecs, u64 flags);
__bpf_helper(long, timer_cancel, struct bpf_timer *timer);
__bpf_helper(long, trace_printk, const char *format, u32 size, ...);

/*
 * struct_ops programs.
 *
 *	s32 BPF_STRUCT_OPS(fifo_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
 *	{ .. }
 *
 * The kernel passes one pointer to an array with a 64-bit word for each argument. The macro
 * makes the program that the kernel calls, which spreads the words over the arguments of the
 * function that the author writes. A sleepable program may use kernel functions that sleep
 * (scx_bpf_create_dsq): init, init_task and exit can be.
 */
#define __words_0(words) words
#define __words_1(words) __words_0(words), (void *)words[0]
#define __words_2(words) __words_1(words), (void *)words[1]
#define __words_3(words) __words_2(words), (void *)words[2]
#define __words_4(words) __words_3(words), (void *)words[3]
#define __words_5(words) __words_4(words), (void *)words[4]
#define __words_6(words) __words_5(words), (void *)words[5]
#define __pick_words(skip, a, b, c, d, e, f, name, ...) name
#define __words(words, ...)                                                                   \
	__pick_words(skip, ##__VA_ARGS__, __words_6, __words_5, __words_4, __words_3, __words_2, \
		     __words_1, __words_0)(words)

#define BPF_PROG(name, args...)                                                               \
	name(unsigned long long *words);                                                      \
	static __always_inline typeof(name(0)) __body_of_##name(unsigned long long *words,    \
								##args);                      \
	typeof(name(0)) name(unsigned long long *words)                                       \
	{                                                                                     \
		_Pragma("clang diagnostic push")                                              \
		/* every argument fits a word, whatever its type */                           \
		_Pragma("clang diagnostic ignored \"-Wint-conversion\"")                      \
		return __body_of_##name(__words(words, ##args));                              \
		_Pragma("clang diagnostic pop")                                               \
	}                                                                                     \
	static __always_inline typeof(name(0)) __body_of_##name(unsigned long long *words,    \
								##args)

#define BPF_STRUCT_OPS(name, args...) SEC("struct_ops/" #name) BPF_PROG(name, ##args)
#define BPF_STRUCT_OPS_SLEEPABLE(name, args...) SEC("struct_ops.s/" #name) BPF_PROG(name, ##args)

/*
 * The scheduler itself: SCX_OPS_DEFINE(fifo_ops, .enqueue = (void *)fifo_enqueue, ..).
 */
#define SCX_OPS_DEFINE(ops_name, ...) \
	SEC(".struct_ops.link") struct sched_ext_ops ops_name = { __VA_ARGS__ }

/*
 * Ends the scheduler with a message: scx_bpf_error("no task %d", pid). Numbers and pointers only.
 */
#define scx_bpf_error(format, args...)                                                        \
	({                                                                                    \
		static char __format[] = format;                                              \
		_Pragma("clang diagnostic push")                                              \
		_Pragma("clang diagnostic ignored \"-Wint-conversion\"")                      \
		unsigned long long __args[] = { args };                                       \
		_Pragma("clang diagnostic pop")                                               \
		scx_bpf_error_bstr(__format, __args, sizeof(__args));                         \
	})

#endif /* CRYOSCOPE_BPF_H */
