//! Whether the engine that was asked for is worth starting here.

use super::Failure;
use crate::vm::{EngineChoice, KvmSpeed, kvm_speed};

/// Refuses an engine that cannot work here, and says which one is slow.
pub(super) fn check(asked: &str) -> Result<(), Failure> {
    if asked != EngineChoice::Kvm.name() {
        return Ok(());
    }
    if let Some(warning) = judge(kvm_speed())? {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

fn judge(speed: Result<KvmSpeed, String>) -> Result<Option<String>, Failure> {
    let speed = speed.map_err(|why| {
        Failure::usage(format!("--engine kvm: {why}; leave --engine out to have QEMU emulate"))
    })?;
    let warning = format!(
        "KVM is {speed}; a kernel takes longer to boot than anybody waits; leave --engine out"
    );
    Ok((!speed.is_real()).then_some(warning))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn kvm_is_taken_refused_or_warned_of() {
        let speed = |nanos| Ok(KvmSpeed { round: Duration::from_nanos(nanos) });
        assert_eq!(judge(speed(2)).unwrap(), None);
        assert_eq!(
            judge(speed(1100)).unwrap().unwrap(),
            "KVM is emulated instruction by instruction: a loop of two instructions takes 1100 ns \
             a round; a kernel takes longer to boot than anybody waits; leave --engine out"
        );
        let refused = judge(Err("there is no /dev/kvm".into())).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (64, "--engine kvm: there is no /dev/kvm; leave --engine out to have QEMU emulate")
        );
        assert!(check("qemu").is_ok() && check("auto").is_ok());
    }
}
