//! The result of a program, and moat's exit status for it.

use std::fmt;
use std::time::Duration;

use agent_protocol::End;
use vmm::Ending;

/// Exit statuses of moat that are no program's, and that no shell has.
const OWN_STATUSES: std::ops::RangeInclusive<u8> = 240..=246;

/// moat's exit status if it cannot start the machine.
pub const NOT_LAUNCHED: u8 = 245;

/// The result of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran to its end.
    Ended(End),
    /// The reader of its standard output is gone, which ends the program as SIGPIPE would.
    OutputClosed,
    /// It was ended from outside, by the user of moat.
    Stopped,
    /// It did not run to its end.
    Failed(Failure),
}

/// Why a program did not run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The program does not exist in the guest.
    NotFound(String),
    /// The guest could not start it.
    NotStarted(String),
    /// The guest's kernel panicked.
    Panicked,
    /// The guest did not start it within this time.
    BootTimeout(Duration),
    /// It ran for longer than this.
    Timeout(Duration),
    /// The guest booted but cannot run programs.
    NotReady(String),
    /// The guest or the machine ended by itself.
    MachineEnded(Ending),
}

impl Outcome {
    /// The exit status: the program's own, 128+N if signal N ended it, or one of moat's own.
    pub fn exit_status(&self) -> u8 {
        const SIGPIPE: u8 = 13;
        match self {
            Self::Ended(End::Exited(status)) => *status as u8,
            Self::Ended(End::Killed(signal)) => 128 | signal.0 as u8,
            Self::OutputClosed => 128 | SIGPIPE,
            Self::Stopped => 246,
            Self::Failed(failure) => failure.exit_status(),
        }
    }

    /// Whether the exit status is the program's, though it is one that moat has a meaning for.
    pub fn is_ambiguous(&self) -> bool {
        let reserved = [126, 127].into_iter().chain(OWN_STATUSES);
        let status = self.exit_status();
        matches!(self, Self::Ended(End::Exited(_))) && reserved.into_iter().any(|it| it == status)
    }
}

impl Failure {
    /// The same as in shells where they have one, and else one that is no program's.
    fn exit_status(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotStarted(_) => 126,
            Self::Panicked => 240,
            Self::BootTimeout(_) => 241,
            Self::Timeout(_) => 242,
            Self::NotReady(_) => 243,
            Self::MachineEnded(_) => 244,
        }
    }

    /// Whether the guest's console may show more about it.
    pub fn concerns_the_guest(&self) -> bool {
        !matches!(self, Self::NotFound(_) | Self::NotStarted(_) | Self::Timeout(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(program) => write!(f, "there is no program {program} in the guest"),
            Self::NotStarted(reason) => write!(f, "the guest cannot start the program: {reason}"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::BootTimeout(limit) => {
                write!(f, "the guest did not start the program within {} s", limit.as_secs())
            }
            Self::Timeout(limit) => {
                write!(f, "the program ran for longer than {} s", limit.as_secs())
            }
            Self::NotReady(reason) => write!(f, "the guest cannot run programs: {reason}"),
            Self::MachineEnded(ending) => write!(f, "before the program had ended, {ending}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use agent_protocol::Signal;

    use super::*;

    fn failures() -> Vec<Failure> {
        let second = Duration::from_secs(1);
        vec![
            Failure::NotFound("x".to_owned()),
            Failure::NotStarted("x".to_owned()),
            Failure::Panicked,
            Failure::BootTimeout(second),
            Failure::Timeout(second),
            Failure::NotReady("x".to_owned()),
            Failure::MachineEnded(Ending::PowerOff),
        ]
    }

    #[test]
    fn every_failure_has_a_status_of_its_own() {
        let mut statuses: Vec<_> = failures().iter().map(Failure::exit_status).collect();
        statuses.extend([NOT_LAUNCHED, Outcome::Stopped.exit_status()]);
        let different = BTreeSet::from_iter(&statuses);
        assert_eq!(different.len(), statuses.len());
        let shells = |status: &u8| [126, 127].contains(status);
        assert!(statuses.iter().all(|it| shells(it) || OWN_STATUSES.contains(it)));
    }

    #[test]
    fn the_status_is_the_programs_and_128_more_than_its_signal() {
        assert_eq!(Outcome::Ended(End::Exited(7)).exit_status(), 7);
        assert_eq!(Outcome::Ended(End::Killed(Signal::SIGKILL)).exit_status(), 137);
        assert_eq!(Outcome::OutputClosed.exit_status(), 141);
    }

    #[test]
    fn a_status_that_could_be_ours_is_recognised() {
        for (status, is_ambiguous) in
            [(0, false), (1, false), (127, true), (242, true), (245, true), (247, false)]
        {
            let outcome = Outcome::Ended(End::Exited(status));
            assert_eq!(outcome.is_ambiguous(), is_ambiguous, "{status}");
        }
        assert!(!Outcome::Failed(Failure::Panicked).is_ambiguous());
    }
}
