//! The freeze coordinator on real machines under QEMU, and what scripts do with it.

use std::fs;
use std::time::{Duration, Instant};

use cryoscope::freeze::Bridge;
use cryoscope::snapshot::{CaptureRequest, Meta};
use cryoscope::vm::channel::Channel;
use cryoscope::vm::{ExitKind, RENDEZVOUS, Standstill};
use place::{Place, alone, project};
use support::soak::Soak;
use support::{CALL, Guest};

mod place;
mod support;

/// Tells about the machine when a test fails.
struct Told<'a> {
    bridge: &'a Bridge,
    channel: &'a Channel,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- frames\n{}", self.channel.trace().join("\n"));
            eprintln!("--- console\n{}", self.bridge.console().tail(60));
            eprintln!("--- machine: {:?}", self.bridge.exited());
        }
    }
}

/// The process of the only machine that this process has.
fn qemu() -> rustix::process::Pid {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").expect("our threads") {
        let children = task.expect("a thread").path().join("children");
        let children = fs::read_to_string(children).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    let is_qemu = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.starts_with("qemu-system")
    };
    found.retain(is_qemu);
    assert_eq!(found.len(), 1, "{found:?}");
    rustix::process::Pid::from_raw(found[0]).expect("a pid")
}

/// QEMU itself stands still: nothing stops in time, nothing is copied, and all goes on.
fn what_does_not_stop_gives_a_placeholder(bridge: &Bridge) {
    const PATIENCE: Duration = Duration::from_millis(300);
    let freeze = || {
        let snap = bridge.freeze(&CaptureRequest::default(), None, Meta::default);
        snap.unwrap_or_else(|e| panic!("{e}"))
    };
    let patience = |patience| bridge.ask("a test", move |f| f.set_patience(patience)).unwrap();
    freeze();
    patience(PATIENCE);
    rustix::process::kill_process(qemu(), rustix::process::Signal::STOP).unwrap();
    let snap = freeze();
    let says = "waited 300ms for QEMU to stop its 2 CPUs (it does not say which of them did not \
                come) in vain";
    assert_eq!(snap.placeholder_reason(), Some(says));
    assert_eq!((snap.pause().total_us, snap.pause().hidden_us), (0, None));
    let error = bridge.pause().unwrap_err().to_string();
    assert_eq!(error, format!("the machine did not stop: {says}"));
    assert!(!bridge.is_paused());
    rustix::process::kill_process(qemu(), rustix::process::Signal::CONT).unwrap();
    patience(RENDEZVOUS);
    assert!(!freeze().is_placeholder());
    // QEMU cannot be told to hold one of its CPUs back.
    let refused = bridge.ask("a test", |f| f.engine_mut().hold_back(Some(1))).unwrap();
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the engine refused hold_back: the engine qemu-tcg cannot make CPU 1 late"
    );
}

#[test]
fn a_thousand_freezes_lose_nothing_and_show_nothing() {
    let _alone = alone();
    let kernel = support::kernel("debian:7.2");
    let mut guest = Guest::boot(support::elf(&kernel), "1n1l2c1t", |_| {});
    let still = Standstill::default();
    let bridge = Bridge::start(guest.take_engine(), still, RENDEZVOUS).expect("a thread");
    let _told = Told { bridge: &bridge, channel: &guest.channel };
    what_does_not_stop_gives_a_placeholder(&bridge);
    let begin = Instant::now();
    let soak = Soak { bridge: &bridge, channel: &guest.channel, cpus: 2, call: CALL };
    soak.freezes(1000);
    println!("{:?}", begin.elapsed());
    // What waits when the machine dies is told so.
    rustix::process::kill_process(qemu(), rustix::process::Signal::KILL).unwrap();
    let error = loop {
        if let Err(error) = bridge.registers() {
            break error.to_string();
        }
        assert!(begin.elapsed() < CALL * 10, "the machine is dead");
    };
    assert!(error.starts_with("the machine's process was killed by signal 9"), "{error}");
    let ended = bridge.exited().expect("it has ended").kind;
    assert!(matches!(ended, ExitKind::EngineDied { .. }), "{ended:?}");
}

#[test]
fn scripts_choose_the_instant() {
    let _alone = alone();
    let place = Place::new();
    let fifo = fs::read(project("examples/schedulers/fifo.bpf.c")).unwrap();
    let instants = fs::read(project("examples/instants.rhai")).unwrap();
    place.file("schedulers/fifo.bpf.c", fifo).file("instants.rhai", instants);
    place.file(
        "more.rhai",
        r#"
scenario("waits in vain, and for what comes", #{
    scheduler: "schedulers/fifo.bpf.c",
    topology: "1n1l2c1t",
    duration: "2s",
}, |t| {
    t.start(#{ work: "spin", count: 2 });
    // A timeout says what it was about.
    let told = "";
    try { t.freeze_when(|s| s.global("nr_enqueued") < 0, #{ timeout: "300ms", every: "20ms" }); }
    catch (e) { told = e.message; expect(e.kind).eq("Timeout"); }
    print(told);
    expect(told).contains("was false at last");
    // The kernel's own state, and a task that is not there yet.
    let pids = t.start(#{ work: "sleep", count: 1 });
    let pid = pids[0];
    let snap = t.freeze_when(|s| s.task(pid).comm == "sleep" && s.cpus().len == 2, #{ tag: "sleeper" });
    expect(snap.task(pid).comm).eq("sleep");
    expect(snap.trigger).eq("condition");
    expect(snap.overshoot_us).gt(0);
    // Never true of a machine that stands: the tag tells.
    try { t.freeze_when(|s| s.tag == "live", #{ timeout: "200ms", every: "40ms" }); }
    catch (e) { print(e.message); expect(e.message).contains("no longer when that stood"); }
    // Nothing of the guest's is lost by all that; and one that stays paused can still be judged.
    expect(t.exec(["echo", "well"]).stdout).eq("well\n");
    t.pause();
    let e = "";
    try { t.hold("1s"); } catch (err) { e = err.message; }
    expect(e).contains("t.resume()");
});
"#,
    );
    for script in ["instants.rhai", "more.rhai"] {
        let said = place.run(&["run", script]);
        println!("{}", said.out);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.out.contains("PASS"), "{said:?}");
    }
}
