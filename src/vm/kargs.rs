//! The kernel's command line. Pure.

/// Kernel arguments that every machine here gets. There is no `quiet`: what the kernel says costs
/// 0.1 s of a boot of 2 s at most, and is all there is to go by when it hangs.
const KERNEL: [(&str, &str); 7] = [
    ("console=ttyS0", "the 8250 is built in, and works before anything else does"),
    ("panic=-1", "restart at once on a panic, which ends the machine (-no-reboot)"),
    ("oops=panic", "a kernel that has stumbled is no longer worth testing on"),
    ("cryptomgr.notests", "self-tests of ciphers take a third of an emulated boot (3.1 to 2.1 s)"),
    ("mitigations=off", "page-table isolation makes an emulated system call take 21 us, not 1.1"),
    ("no_timer_check", "on a busy host no tick may come while the timer is tried, and that panics"),
    ("tsc=reliable", "on a busy host a watchdog sees the TSC jump against slower clocks"),
];

/// The kernel command line; what the caller asks comes last and wins.
pub(super) fn line(asked: &[String]) -> String {
    let ours = KERNEL.iter().map(|(arg, _why)| *arg);
    ours.chain(asked.iter().map(String::as_str)).collect::<Vec<_>>().join(" ")
}
