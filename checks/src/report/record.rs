//! What was observed, before it is judged.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    framework::{Observation, Profile, Scenario},
    suites,
};

/// What was observed on one kernel, run by one monitor. Its scenarios are written as they are judged.
#[derive(Debug, Serialize, Deserialize)]
pub struct KernelRecord {
    /// The monitor.
    pub vmm: String,
    /// Its IOMMU.
    pub iommu: String,
    /// The kernel's image.
    pub image: PathBuf,
    /// Its release.
    pub release: String,
    /// When its first guest was started.
    pub started_unix_milliseconds: u64,
    /// The guests that booted, in their order.
    pub guests: Vec<GuestRecord>,
    /// The scenarios, in the order of the catalogue.
    #[serde(skip_serializing)]
    pub scenarios: Vec<ScenarioRecord>,
    /// Guests in which something went wrong.
    pub lost_guests: Vec<LostGuest>,
}

/// What was observed for one scenario.
#[derive(Debug, Deserialize)]
pub struct ScenarioRecord {
    /// Which.
    #[serde(rename = "id", deserialize_with = "known_scenario")]
    pub scenario: &'static Scenario,
    /// What was observed.
    pub observations: Vec<Observation>,
    /// Why it was not run, or not to its end.
    pub unfinished: Option<Unfinished>,
    /// How long its cases took, in all guests together.
    #[serde(rename = "milliseconds", deserialize_with = "milliseconds")]
    pub duration: Duration,
}

impl ScenarioRecord {
    /// Of a scenario that has not been run yet.
    pub fn new(scenario: &'static Scenario) -> Self {
        Self { scenario, observations: Vec::new(), unfinished: None, duration: Duration::ZERO }
    }
}

/// A guest that booted.
#[derive(Debug, Serialize, Deserialize)]
pub struct GuestRecord {
    /// How it was started.
    pub profile: Profile,
    /// How long it took until its agent answered.
    #[serde(
        rename = "boot_milliseconds",
        serialize_with = "to_milliseconds",
        deserialize_with = "milliseconds"
    )]
    pub boot: Duration,
}

/// Why a scenario was not run, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfinished {
    /// The kernel or the monitor lacks what it needs.
    Skipped(String),
    /// Something went wrong.
    Failed(String),
    /// The guest did not boot.
    NotAsked(String),
}

/// A guest that was lost, or in which a case did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostGuest {
    /// How it was started.
    pub profile: Profile,
    /// What went wrong.
    pub error: String,
    /// The last lines of the guest's console.
    pub console: String,
}

impl KernelRecord {
    /// What was observed for a scenario; none if the kernel was not asked it.
    pub fn record_of(&self, scenario: &Scenario) -> Option<&ScenarioRecord> {
        self.scenarios.iter().find(|record| record.scenario.id == scenario.id)
    }

    /// The guests in which something was observed.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        let observations = self.scenarios.iter().flat_map(|scenario| &scenario.observations);
        let seen: Vec<_> = observations.filter_map(|observation| observation.profile).collect();
        Profile::ALL.into_iter().filter(move |profile| seen.contains(profile))
    }
}

fn known_scenario<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<&'static Scenario, D::Error> {
    let id = String::deserialize(deserializer)?;
    let mut known = suites::select(&[id]).map_err(D::Error::custom)?;
    Ok(known.remove(0))
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

fn to_milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u128(duration.as_millis())
}
