//! Runs scenarios on a kernel, one guest after the other.

use std::{
    fmt::Display,
    time::{Duration, Instant, UNIX_EPOCH},
};

use testvm::{
    kernel::GuestKernel,
    vm::{Trouble, Vm, VmConfig, VmError, Vmm},
};

use crate::{
    framework::{AfterLoad, Case, CaseResult, Profile, Recorder, Scenario},
    report::{GuestRecord, KernelRecord, LostGuest, ScenarioRecord, Unfinished},
};

/// How scenarios are run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What runs the guests.
    pub vmm: Vmm,
    /// Number of vCPUs of each guest.
    pub vcpus: u32,
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A guest is started for these scenarios.
    Booting(&'a GuestKernel, Vmm, Profile, &'a [&'static Scenario]),
    /// A scenario has been run in all its guests.
    Finished(&'a ScenarioRecord),
}

/// Runs scenarios on a kernel.
pub fn run(
    kernel: &GuestKernel,
    scenarios: &[&'static Scenario],
    settings: Settings,
    progress: &dyn Fn(Progress),
) -> KernelRecord {
    let records =
        scenarios.iter().map(|scenario| blank_record(scenario, kernel, settings.vmm)).collect();
    let since_epoch = UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut run = Run { kernel, settings, records, guests: Vec::new(), lost_guests: Vec::new() };
    run.read_configurations();
    for profile in Profile::ALL {
        let cases = cases(&run.records, profile);
        if !cases.is_empty() && run.may_boot() {
            let scenarios: Vec<_> = cases.iter().map(|case| case.scenario).collect();
            progress(Progress::Booting(kernel, settings.vmm, profile, &scenarios));
            run.run_in_guests(profile, cases);
        }
    }
    for record in &run.records {
        progress(Progress::Finished(record));
    }
    KernelRecord {
        vmm: settings.vmm.name().to_owned(),
        iommu: settings.vmm.iommu().to_string(),
        image: kernel.image().to_owned(),
        release: kernel.release().to_owned(),
        started_unix_milliseconds: since_epoch.as_millis() as u64,
        guests: run.guests,
        scenarios: run.records,
        lost_guests: run.lost_guests,
    }
}

/// A record without observations; skipped if the kernel or the monitor lacks something.
fn blank_record(scenario: &'static Scenario, kernel: &GuestKernel, vmm: Vmm) -> ScenarioRecord {
    let missing = scenario.requires.iter().find_map(|needed| needed.missing_in(kernel, vmm));
    let unfinished = missing.map(Unfinished::Skipped);
    ScenarioRecord { unfinished, ..ScenarioRecord::new(scenario) }
}

/// A case to be run in a guest.
struct GuestCase {
    scenario: &'static Scenario,
    /// The place of the scenario's record.
    record: usize,
    run: fn(&Vm, &mut Recorder) -> CaseResult,
    recorder: Recorder,
    /// How long it has taken.
    duration: Duration,
}

/// The cases to be run in one guest, in their order.
fn cases(records: &[ScenarioRecord], profile: Profile) -> Vec<GuestCase> {
    let (mut cases, mut last) = (Vec::new(), Vec::new());
    for (record, ScenarioRecord { scenario, unfinished, .. }) in records.iter().enumerate() {
        for case in scenario.cases {
            let (place, run, cases) = match *case {
                Case::InGuest(place, run) => (place, run, &mut cases),
                Case::Last(place, run) => (place, run, &mut last),
                Case::OfKernel(_) => continue,
            };
            if place == profile && unfinished.is_none() {
                let recorder = Recorder::new(Some(profile));
                let duration = Duration::ZERO;
                cases.push(GuestCase { scenario, record, run, recorder, duration });
            }
        }
    }
    cases.append(&mut last);
    cases
}

struct Run<'a> {
    kernel: &'a GuestKernel,
    settings: Settings,
    records: Vec<ScenarioRecord>,
    guests: Vec<GuestRecord>,
    lost_guests: Vec<LostGuest>,
}

impl Run<'_> {
    fn read_configurations(&mut self) {
        for record in self.records.iter_mut().filter(|record| record.unfinished.is_none()) {
            for case in record.scenario.cases {
                if let Case::OfKernel(run) = case {
                    let mut recorder = Recorder::new(None);
                    if let Err(error) = run(self.kernel, &mut recorder) {
                        record.unfinished = Some(Unfinished::Failed(error.to_string()));
                    }
                    record.observations.extend(recorder.into_observations());
                }
            }
        }
    }

    /// Runs cases in a guest; if one of them ends the guest, the remaining ones in another. If a guest is
    /// lost, or does not power off, none of its cases' results is trusted.
    fn run_in_guests(&mut self, profile: Profile, mut cases: Vec<GuestCase>) {
        while !cases.is_empty() {
            let done = self.run_in_guest(profile, &mut cases).unwrap_or_else(|trouble| {
                self.record_lost_guest(profile, &cases, *trouble);
                cases.len()
            });
            for case in cases.drain(..done) {
                let record = &mut self.records[case.record];
                record.observations.extend(case.recorder.into_observations());
                record.duration += case.duration;
            }
        }
    }

    fn record_lost_guest(&mut self, profile: Profile, cases: &[GuestCase], trouble: Trouble) {
        let unfinished = match trouble.at_boot {
            true => Unfinished::NotAsked(format!("the {profile} guest did not boot: {trouble}")),
            false => Unfinished::Failed(format!("the {profile} guest was lost: {trouble}")),
        };
        for case in cases {
            self.mark_unfinished(case.record, unfinished.clone());
        }
        if trouble.at_boot && self.guests.is_empty() {
            self.mark_all_unfinished(&format!(
                "no guest was tried after the {profile} guest did not boot: {trouble}"
            ));
        }
        let (error, console) = (trouble.to_string(), trouble.console);
        self.lost_guests.push(LostGuest { profile, error, console });
    }

    /// Returns how many of the cases were run.
    fn run_in_guest(
        &mut self,
        profile: Profile,
        cases: &mut [GuestCase],
    ) -> Result<usize, Box<Trouble>> {
        let Settings { vmm, vcpus } = self.settings;
        let required = cases.iter().flat_map(|case| case.scenario.requires);
        let modules: Vec<_> = required.flat_map(|it| it.modules(self.kernel, vmm)).collect();
        // Scenarios that need a missing module have been skipped.
        let machine = profile.machine(vmm, self.kernel, &modules)?;
        let start = Instant::now();
        let vm = Vm::boot(&VmConfig { vcpus, ..machine })?;
        self.guests.push(GuestRecord { profile, boot: start.elapsed() });
        if profile.has_iommu() {
            vm.load_iommu_driver().map_err(|error| vm.trouble(error.into()))?;
        }
        self.run_to_the_end(profile, &vm, cases).map_err(|error| vm.trouble(error))
    }

    fn run_to_the_end(
        &mut self,
        profile: Profile,
        vm: &Vm,
        cases: &mut [GuestCase],
    ) -> Result<usize, VmError> {
        let all = cases.len();
        let mut remaining: Vec<(&mut GuestCase, AfterLoad)> = Vec::new();
        for (place, case) in cases.iter_mut().enumerate() {
            let start = Instant::now();
            let result = (case.run)(vm, &mut case.recorder);
            case.duration = start.elapsed();
            match result {
                Ok(Some(rest)) => remaining.push((case, rest)),
                Ok(None) => {}
                Err(error @ VmError::Died) => {
                    self.record_console(profile, vm, case, &error);
                    for (other, _) in remaining {
                        let why = format!("{} ended its guest", case.scenario.id);
                        self.mark_unfinished(other.record, Unfinished::Failed(why));
                    }
                    return Ok(place + 1);
                }
                Err(error) => self.fail_case(profile, vm, case, error)?,
            }
        }
        if !remaining.is_empty() {
            vm.load_driver()?;
        }
        for (case, rest) in remaining {
            case.recorder.clear_state();
            let start = Instant::now();
            let result = rest(vm, &mut case.recorder);
            case.duration += start.elapsed();
            if let Err(error) = result {
                self.fail_case(profile, vm, case, error)?;
            }
        }
        vm.power_off()?;
        Ok(all)
    }

    /// Marks a case that had an error as failed, unless the guest is lost.
    fn fail_case(
        &mut self,
        profile: Profile,
        vm: &Vm,
        case: &GuestCase,
        error: VmError,
    ) -> Result<(), VmError> {
        if error.guest_is_lost() {
            return Err(error);
        }
        let error = Box::<Trouble>::from(error);
        let why = format!("in the {profile} guest: {error}");
        self.mark_unfinished(case.record, Unfinished::Failed(why));
        self.record_console(profile, vm, case, &error);
        Ok(())
    }

    /// Keeps the end of the guest's console.
    fn record_console(&mut self, profile: Profile, vm: &Vm, case: &GuestCase, error: &dyn Display) {
        let (error, console) = (format!("{}: {error}", case.scenario.id), vm.console().tail());
        self.lost_guests.push(LostGuest { profile, error, console });
    }

    /// Marks everything that would be run in a guest.
    fn mark_all_unfinished(&mut self, why: &str) {
        for record in 0..self.records.len() {
            let cases = self.records[record].scenario.cases;
            if cases.iter().any(|case| !matches!(case, Case::OfKernel(_))) {
                self.mark_unfinished(record, Unfinished::NotAsked(why.to_owned()));
            }
        }
    }

    /// A kernel that has crashed in its first guest would crash in the others, too.
    fn may_boot(&self) -> bool {
        !self.guests.is_empty() || self.lost_guests.is_empty()
    }

    /// The first reason counts.
    fn mark_unfinished(&mut self, record: usize, why: Unfinished) {
        self.records[record].unfinished.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suites::catalogue;

    fn records() -> Vec<ScenarioRecord> {
        catalogue().iter().copied().map(ScenarioRecord::new).collect()
    }

    fn ids(records: &[ScenarioRecord], profile: Profile) -> Vec<&'static str> {
        cases(records, profile).iter().map(|case| case.scenario.id).collect()
    }

    #[test]
    fn a_case_that_does_not_leave_its_guest_as_it_was_comes_last() {
        assert_eq!(ids(&records(), Profile::Offline), ["VM6", "VM17", "VM14"]);
    }

    #[test]
    fn a_skipped_scenario_is_run_in_no_guest() {
        let mut records = records();
        assert_eq!(ids(&records, Profile::Lockdown), ["VM22"]);
        let lockdown = records.iter_mut().find(|record| record.scenario.id == "VM22").unwrap();
        lockdown.unfinished = Some(Unfinished::Skipped("no lockdown".to_owned()));
        assert!(ids(&records, Profile::Lockdown).is_empty());
        assert!(!ids(&records, Profile::Plain).contains(&"VM22"));
    }
}
