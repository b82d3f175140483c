//! What a check is made of: scenarios and their cases, the guests that they run in, what they need, and
//! what they record.

mod expected;
mod finding;
pub mod misaligned_device;
mod mitigation;
mod observation;
mod profile;
mod recorder;
mod requirement;
mod scenario;

pub use expected::{Expect, Expected};
pub use finding::{Finding, IntoFinding};
pub use mitigation::{Mitigation, UnknownMitigation};
pub use observation::{Judgement, Kind, Observation, Role};
pub use profile::Profile;
pub use recorder::Recorder;
pub use requirement::Requirement;
pub use scenario::{AfterLoad, Case, CaseResult, Scenario, after_load};
