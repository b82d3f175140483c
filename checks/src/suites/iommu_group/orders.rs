//! G12: a group has one owner, in whatever order the kernel and user space claim and release it.
//!
//! A walk through all sequences of steps up to a length, with a model of what must come of each step.

use std::fmt;

use testvm::{
    guest::{Errno, GuestError, Observe as _, Outcome, Process, VfioDevice},
    vm::{Vm, VmError},
};

use crate::{
    framework::{
        Case, CaseResult, Expect as _, Finding, Mitigation, Profile, Recorder, Requirement,
        Scenario,
    },
    suites::iommu_group::members::{
        OWNERSHIP, Pair, UIO_PCI_GENERIC, VFIO_PCI, check_alive, complaint_since,
    },
};

/// The number of steps of the longest sequences.
const STEPS: usize = 4;

/// G12: after any steps of both sides user space is refused the group while a driver has bound in it,
/// EPERM, and the driver while user space owns it, EBUSY. Controls: all other steps, OK.
pub fn every_order(vm: &Vm, t: &mut Recorder) -> CaseResult {
    let pair = Pair::of_one_device(vm)?;
    pair.claimed.bind(VFIO_PCI)?;
    let start = vm.guest.log_end()?;
    let mut walk = Walk { vm, pair: &pair, user: None, edges: Vec::new() };
    let explored = walk.explore(t, State::START, STEPS);
    for Edge { state, step, observed } in walk.edges {
        t.when(state);
        match state.after(step) {
            Ok(_) => t.control(step, Finding::Done, observed)?,
            Err(refusal) => t.check(step, refusal.by(step.refused_by()), observed)?,
        }
    }
    explored?;
    t.when("at the end");
    t.check("what the kernel complains of", "nothing", complaint_since(vm, start)?)?;
    pair.release()?;
    Ok(None)
}

/// What one of the sides does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// User space takes the group, by the claimed function.
    Open,
    /// It gives it back.
    Close,
    /// A driver of the kernel's is bound to the sibling.
    Bind,
    /// It is taken away.
    Unbind,
    /// The sibling is removed.
    Remove,
    /// It is found again.
    Rescan,
}

/// Who has what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    is_owned: bool,
    sibling: Sibling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sibling {
    Removed,
    Unbound,
    Bound,
}

impl State {
    const START: Self = Self { is_owned: false, sibling: Sibling::Unbound };

    /// The steps that can be taken.
    fn steps(self) -> Vec<Step> {
        let user = if self.is_owned { Step::Close } else { Step::Open };
        match self.sibling {
            Sibling::Removed => vec![user, Step::Rescan],
            Sibling::Unbound => vec![user, Step::Bind, Step::Remove],
            Sibling::Bound => vec![user, Step::Unbind, Step::Remove],
        }
    }

    /// What must come of a step: a state, or a refusal.
    fn after(self, step: Step) -> Result<Self, Errno> {
        let with_owner = |is_owned| Ok(Self { is_owned, ..self });
        let with_sibling = |sibling| Ok(Self { sibling, ..self });
        match step {
            Step::Open if self.sibling == Sibling::Bound => Err(Errno::EPERM),
            Step::Bind if self.is_owned => Err(Errno::EBUSY),
            Step::Open => with_owner(true),
            Step::Close => with_owner(false),
            Step::Bind => with_sibling(Sibling::Bound),
            Step::Unbind | Step::Rescan => with_sibling(Sibling::Unbound),
            Step::Remove => with_sibling(Sibling::Removed),
        }
    }
}

impl Step {
    /// The steps that lead back to where it was taken.
    fn back(self, from: State) -> Vec<Self> {
        match self {
            Self::Open => vec![Self::Close],
            Self::Close => vec![Self::Open],
            Self::Bind => vec![Self::Unbind],
            Self::Unbind => vec![Self::Bind],
            Self::Remove if from.sibling == Sibling::Bound => vec![Self::Rescan, Self::Bind],
            Self::Remove => vec![Self::Rescan],
            Self::Rescan => vec![Self::Remove],
        }
    }

    /// The mitigation that refuses it.
    fn refused_by(self) -> &'static [Mitigation] {
        match self {
            Self::Open => &[Mitigation::GroupClaim],
            _ => OWNERSHIP,
        }
    }
}

/// A step in a state, and its result: the first wrong one, if there was one.
struct Edge {
    state: State,
    step: Step,
    observed: Outcome<()>,
}

struct Walk<'a> {
    vm: &'a Vm,
    pair: &'a Pair,
    /// Who owns the group.
    user: Option<Process>,
    edges: Vec<Edge>,
}

impl Walk<'_> {
    /// Takes all sequences of steps from a state on, and comes back to it.
    fn explore(&mut self, t: &mut Recorder, state: State, steps: usize) -> Result<(), VmError> {
        if steps == 0 {
            return Ok(());
        }
        for step in state.steps() {
            let answer = self.take(step);
            let expected = state.after(step).map_or_else(Finding::from, |_| Finding::Done);
            t.when(state);
            check_alive(self.vm, t, step, expected, &answer)?;
            let observed = answer.outcome()?;
            let is_done = matches!(observed, Outcome::Value(()));
            self.record(state, step, observed);
            if let (Ok(next), true) = (state.after(step), is_done) {
                self.explore(t, next, steps - 1)?;
            }
            if is_done {
                for back in step.back(state) {
                    self.take(back)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step) -> Result<(), GuestError> {
        let Pair { claimed, sibling } = self.pair;
        match step {
            Step::Open => {
                let user = self.vm.guest.spawn()?;
                let opened = VfioDevice::open(&user, claimed);
                match opened {
                    Ok(_) => self.user = Some(user),
                    Err(_) => user.kill()?,
                }
                opened.map(drop)
            }
            Step::Close => self.user.take().map_or(Ok(()), Process::kill),
            Step::Bind => sibling.bind(UIO_PCI_GENERIC),
            Step::Unbind => sibling.unbind(),
            Step::Remove => sibling.remove(),
            Step::Rescan => self.vm.guest.rescan_pci(),
        }
    }

    fn record(&mut self, state: State, step: Step, observed: Outcome<()>) {
        let is_right = |observed: &Outcome<()>| match state.after(step) {
            Ok(_) => matches!(observed, Outcome::Value(())),
            Err(refusal) => *observed == refusal,
        };
        let known = self.edges.iter_mut().find(|edge| edge.state == state && edge.step == step);
        match known {
            Some(edge) if is_right(&edge.observed) => edge.observed = observed,
            Some(_) => {}
            None => self.edges.push(Edge { state, step, observed }),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_owned { "group owned" } else { "group not owned" })?;
        f.write_str(match self.sibling {
            Sibling::Removed => ", sibling removed",
            Sibling::Unbound => ", sibling not bound",
            Sibling::Bound => ", sibling bound",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open for user space",
            Self::Close => "close",
            Self::Bind => "bind sibling to uio_pci_generic",
            Self::Unbind => "unbind sibling",
            Self::Remove => "remove sibling",
            Self::Rescan => "rescan",
        })
    }
}

const GROUPS: &[Requirement] = &[Requirement::Iommu, Requirement::Vfio, Requirement::UioPciGeneric];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario {
    id: "G12",
    title: "a group has one owner, in whatever order the kernel and user space come and go",
    requires: GROUPS,
    cases: &[Case::InGuest(Profile::Iommu, every_order)],
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_taken_back() {
        let (mut reached, mut next) = (Vec::new(), vec![State::START]);
        while let Some(state) = next.pop() {
            if reached.contains(&state) {
                continue;
            }
            reached.push(state);
            for step in state.steps() {
                let Ok(after) = state.after(step) else { continue };
                let back = step.back(state).into_iter().try_fold(after, State::after);
                assert_eq!(back, Ok(state), "{state}: {step}");
                next.push(after);
            }
        }
        let two_owners = State { is_owned: true, sibling: Sibling::Bound };
        assert_eq!(reached.len(), 5);
        assert!(!reached.contains(&two_owners));
    }
}
