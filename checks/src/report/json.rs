//! A report as JSON: what was observed, and how it is judged. Only the former is read back.

use serde::{Deserialize, Serialize};

use super::{Comparison, KernelRecord, Report, ScenarioRecord, Totals, Unfinished, Verdict};
use crate::framework::{Judgement, Mitigation, Observation};

#[derive(Serialize)]
struct JudgedReport<'a> {
    holds: bool,
    lacking: &'a [Mitigation],
    totals: Totals,
    kernels: Vec<JudgedKernel<'a>>,
    comparisons: Vec<Comparison>,
}

#[derive(Serialize)]
struct JudgedKernel<'a> {
    #[serde(flatten)]
    kernel: &'a KernelRecord,
    scenarios: Vec<JudgedScenario<'a>>,
}

#[derive(Serialize)]
struct JudgedScenario<'a> {
    id: &'static str,
    title: &'static str,
    verdict: Verdict,
    unfinished: &'a Option<Unfinished>,
    milliseconds: u128,
    observations: Vec<JudgedObservation<'a>>,
}

#[derive(Serialize)]
struct JudgedObservation<'a> {
    #[serde(flatten)]
    observation: &'a Observation,
    judgement: Judgement<'a>,
}

#[derive(Deserialize)]
struct RecordedReport {
    lacking: Vec<Mitigation>,
    kernels: Vec<KernelRecord>,
}

impl Report {
    /// The report as JSON.
    pub fn to_json(&self) -> String {
        let judged = JudgedReport {
            holds: self.holds(),
            lacking: &self.lacking,
            totals: self.totals(),
            kernels: self.kernels.iter().map(|kernel| judge(kernel, &self.lacking)).collect(),
            comparisons: self.comparisons(),
        };
        serde_json::to_string_pretty(&judged).expect("every value of a report has a form in JSON")
    }

    /// Reads a report that [`Self::to_json`] made.
    pub fn from_json(json: &str) -> serde_json::Result<Self> {
        let RecordedReport { lacking, kernels } = serde_json::from_str(json)?;
        Ok(Self { lacking, kernels })
    }
}

fn judge<'a>(kernel: &'a KernelRecord, lacking: &[Mitigation]) -> JudgedKernel<'a> {
    let scenarios = kernel.scenarios.iter().map(|scenario| judge_scenario(scenario, lacking));
    JudgedKernel { kernel, scenarios: scenarios.collect() }
}

fn judge_scenario<'a>(record: &'a ScenarioRecord, lacking: &[Mitigation]) -> JudgedScenario<'a> {
    let judge = |observation: &'a Observation| JudgedObservation {
        observation,
        judgement: observation.judge(lacking),
    };
    JudgedScenario {
        id: record.scenario.id,
        title: record.scenario.title,
        verdict: record.verdict(lacking),
        unfinished: &record.unfinished,
        milliseconds: record.duration.as_millis(),
        observations: record.observations.iter().map(judge).collect(),
    }
}
