//! A report as objects of KernelCI's common database (kcidb-io, schema 5.3).

use serde_json::{Value, json};

use super::{KernelRecord, Outcome, Report, Verdict};

impl Report {
    /// The report as JSON that kcidb takes, from an origin: the name by which kcidb knows who sends it. Each
    /// kernel is a build of a checkout that nothing else is known of.
    pub fn to_kcidb(&self, origin: &str) -> String {
        let checkouts: Vec<_> = self.kernels.iter().map(|kernel| kernel.checkout(origin)).collect();
        let builds: Vec<_> = self.kernels.iter().map(|kernel| kernel.build(origin)).collect();
        let tests: Vec<_> =
            self.kernels.iter().flat_map(|kernel| self.kcidb_tests(kernel, origin)).collect();
        let version = json!({ "major": 5, "minor": 3 });
        let all = json!({
            "version": version, "checkouts": checkouts, "builds": builds, "tests": tests
        });
        format!("{all:#}")
    }

    fn kcidb_tests(&self, kernel: &KernelRecord, origin: &str) -> Vec<Value> {
        let tests = kernel.scenarios.iter().map(|record| {
            let id = record.scenario.id;
            let mut test = json!({
                "id": format!("{}_{id}", kernel.kcidb_id(origin)),
                "build_id": kernel.kcidb_id(origin),
                "origin": origin,
                "path": format!("moat.{id}"),
                "comment": record.scenario.title,
                "status": match record.verdict(&self.lacking) {
                    Verdict::Passed => "PASS",
                    Verdict::Failed => "FAIL",
                    Verdict::KnownGap | Verdict::Skipped => "SKIP",
                    Verdict::NotAsked => "MISS",
                },
                "duration": record.duration.as_secs_f64(),
                "environment": { "comment": format!("{}, {}", kernel.vmm, kernel.iommu) },
                "misc": { "observations": record.lines(&self.lacking) },
            });
            if let Outcome::Failed(why) | Outcome::Error(why) | Outcome::Skipped(why) =
                record.outcome(&self.lacking)
            {
                // The schema's limit.
                test["log_excerpt"] = why.chars().take(16384).collect::<String>().into();
            }
            test
        });
        tests.collect()
    }
}

impl KernelRecord {
    fn checkout(&self, origin: &str) -> Value {
        json!({ "id": self.kcidb_id(origin), "origin": origin, "comment": self.release })
    }

    fn build(&self, origin: &str) -> Value {
        json!({
            "id": self.kcidb_id(origin),
            "checkout_id": self.kcidb_id(origin),
            "origin": origin,
            "architecture": "x86_64",
            "comment": self.title(),
            "status": "PASS",
        })
    }

    /// An id that is this run's alone, as far as its start time tells.
    fn kcidb_id(&self, origin: &str) -> String {
        let release = self.release.replace(|char: char| !char.is_ascii_alphanumeric(), "_");
        let vmm = self.vmm.replace(|char: char| !char.is_ascii_alphanumeric(), "_");
        format!("{origin}:{release}_{vmm}_{}", self.started_unix_milliseconds)
    }
}
