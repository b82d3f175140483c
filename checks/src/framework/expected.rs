//! What is expected of a kernel with certain mitigations, and of one without.

use serde::{Deserialize, Serialize};

use super::{Finding, Mitigation};

/// The expected result of something that is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// On a kernel with the mitigations.
    pub finding: Finding,
    /// On one that lacks some of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unprotected: Option<Unprotected>,
    /// On every kernel that we know, although it should be `finding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_gap: Option<Finding>,
}

/// What is expected of a kernel that lacks some mitigation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unprotected {
    /// Any of these.
    pub without: Vec<Mitigation>,
    /// None where any result is accepted.
    pub finding: Option<Finding>,
}

impl Expected {
    /// The result on a kernel that lacks the mitigation, in place of [`Finding::Done`].
    pub fn otherwise(mut self, finding: impl Into<Finding>) -> Self {
        if let Some(unprotected) = &mut self.unprotected {
            unprotected.finding = Some(finding.into());
        }
        self
    }

    /// On a kernel that lacks the mitigation any result is accepted.
    pub fn otherwise_anything(mut self) -> Self {
        if let Some(unprotected) = &mut self.unprotected {
            unprotected.finding = None;
        }
        self
    }

    /// The result on every kernel that we know, although it is a gap in the protection.
    pub fn except_for_known_gap(mut self, finding: impl Into<Finding>) -> Self {
        self.known_gap = Some(finding.into());
        self
    }
}

impl<T: Into<Finding>> From<T> for Expected {
    fn from(finding: T) -> Self {
        Self { finding: finding.into(), unprotected: None, known_gap: None }
    }
}

/// What can be expected.
pub trait Expect {
    /// It is expected where all these mitigations are, and elsewhere that it works.
    fn by(self, mitigations: &[Mitigation]) -> Expected;
}

impl<T: Into<Finding>> Expect for T {
    fn by(self, mitigations: &[Mitigation]) -> Expected {
        let unprotected =
            Unprotected { without: mitigations.to_vec(), finding: Some(Finding::Done) };
        Expected { unprotected: Some(unprotected), ..self.into().into() }
    }
}
