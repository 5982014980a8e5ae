//! Why a snapshot was taken.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a snapshot was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Trigger {
    /// Somebody asked for it.
    #[default]
    Demand,
    /// Its time had come.
    Periodic {
        /// When that was, on the workload clock in milliseconds.
        boundary_offset_ms: u64,
    },
    /// A predicate had turned true.
    Condition,
    /// A CPU wrote to a watched place.
    Watch {
        /// What the place is called.
        place: String,
        /// Where it is.
        address: u64,
        /// How many bytes were watched.
        bytes: u8,
        /// The CPU that wrote, where the engine knows.
        cpu: Option<u32>,
        /// What was there when it was last looked at: at the write before, or when the watch
        /// began. A write that was not seen meanwhile does not show.
        before: Option<u64>,
        /// What is there now.
        after: Option<u64>,
    },
    /// A scheduler left.
    ErrorExit {
        /// The CPU that was about to take it out of service, where it was trapped.
        cpu: Option<u32>,
        /// The kernel's function at whose beginning the machine stood still.
        function: Option<String>,
        /// Where it could only be polled: how many microseconds ago it still was well.
        late_us: Option<u64>,
    },
}

impl Trigger {
    /// Whether it is nothing but that somebody asked.
    #[must_use]
    pub fn is_demand(&self) -> bool {
        *self == Trigger::Demand
    }

    /// One line about it; `None` of what happens all the time.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        let on = |cpu: &Option<u32>| cpu.map_or(String::new(), |cpu| format!(" by CPU {cpu}"));
        let value = |v: &Option<u64>| v.map_or("?".to_owned(), |v| v.to_string());
        match self {
            Trigger::Demand | Trigger::Periodic { .. } | Trigger::Condition => None,
            Trigger::Watch { place, address, bytes, cpu, before, after } => Some(format!(
                "a write to {place} ({bytes} bytes at {address:#x}){}: {} -> {}",
                on(cpu),
                value(before),
                value(after)
            )),
            Trigger::ErrorExit { cpu, function: Some(function), .. } => {
                Some(format!("a scheduler's exit, trapped in {function}{}", on(cpu)))
            }
            Trigger::ErrorExit { late_us, .. } => Some(format!(
                "a scheduler's exit, seen by polling at most {} us late",
                value(late_us)
            )),
        }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Demand => f.write_str("demand"),
            Trigger::Periodic { .. } => f.write_str("periodic"),
            Trigger::Condition => f.write_str("condition"),
            Trigger::Watch { place, .. } => write!(f, "watch {place}"),
            Trigger::ErrorExit { .. } => f.write_str("error exit"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Trigger {
        Trigger::Watch {
            place: "jiffies_64".into(),
            address: 0xffff_ffff_8200_0000,
            bytes: 8,
            cpu: Some(1),
            before: Some(7),
            after: None,
        }
    }

    fn exit(function: Option<&str>, late_us: Option<u64>) -> Trigger {
        Trigger::ErrorExit { cpu: None, function: function.map(str::to_owned), late_us }
    }

    #[test]
    fn triggers_are_told() {
        let cases = [
            (Trigger::Demand, "demand", None),
            (Trigger::Periodic { boundary_offset_ms: 7 }, "periodic", None),
            (Trigger::Condition, "condition", None),
            (
                watch(),
                "watch jiffies_64",
                Some("a write to jiffies_64 (8 bytes at 0xffffffff82000000) by CPU 1: 7 -> ?"),
            ),
            (
                exit(Some("scx_disable_irq_workfn"), None),
                "error exit",
                Some("a scheduler's exit, trapped in scx_disable_irq_workfn"),
            ),
            (
                exit(None, Some(900)),
                "error exit",
                Some("a scheduler's exit, seen by polling at most 900 us late"),
            ),
        ];
        for (trigger, name, told) in cases {
            assert_eq!((trigger.to_string().as_str(), trigger.told().as_deref()), (name, told));
            let json = serde_json::to_string(&trigger).unwrap();
            assert_eq!(serde_json::from_str::<Trigger>(&json).unwrap(), trigger, "{json}");
        }
    }
}
