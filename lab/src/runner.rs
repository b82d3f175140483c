//! Tells scenarios on a kernel, one guest after the other.

use std::fmt::Display;

use crate::{
    initramfs::Initramfs,
    kernel::GuestKernel,
    report::{
        KernelReport, Observations, Protection, ScenarioReport, TroubledGuest, Unfinished, Verdict,
    },
    scenarios::{AfterLoad, Boot, Scenario, Story, Told},
    vm::{Special, Trouble, Vm, VmConfig, VmError, Vmm},
};

/// How scenarios are told.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// What runs the guests.
    pub vmm: Vmm,
    /// Number of vCPUs of each guest.
    pub vcpus: u32,
    /// What the kernel is expected to lack.
    pub lacking: &'a [Protection],
}

/// What is going on.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A guest is started for these scenarios.
    Booting(&'a GuestKernel, Vmm, Boot, &'a [&'static Scenario]),
    /// A scenario is done with, all its guests included.
    Told(&'static Scenario, Verdict),
}

/// Tells scenarios on a kernel.
pub fn run(
    kernel: &GuestKernel,
    scenarios: &[&'static Scenario],
    settings: Settings,
    progress: &dyn Fn(Progress),
) -> KernelReport {
    let reports =
        scenarios.iter().map(|scenario| blank_report(scenario, kernel, settings.vmm)).collect();
    let mut run = Run { kernel, settings, reports, troubled_guests: Vec::new(), has_booted: false };
    run.read_configurations();
    for boot in Boot::ALL {
        let stories = stories(&run.reports, boot, settings.lacking);
        if !stories.is_empty() && run.may_boot() {
            let told: Vec<_> = stories.iter().map(|told| told.scenario).collect();
            progress(Progress::Booting(kernel, settings.vmm, boot, &told));
            run.tell(boot, stories);
        }
    }
    for report in &mut run.reports {
        report.require_checks_and_controls();
        progress(Progress::Told(report.scenario, report.verdict()));
    }
    KernelReport {
        vmm: settings.vmm,
        image: kernel.image().to_owned(),
        release: kernel.release().to_owned(),
        scenarios: run.reports,
        troubled_guests: run.troubled_guests,
    }
}

/// A report of nothing yet, but for what the kernel or the monitor lacks.
fn blank_report(scenario: &'static Scenario, kernel: &GuestKernel, vmm: Vmm) -> ScenarioReport {
    let missing = scenario.needs.iter().find_map(|need| need.missing_in(kernel, vmm));
    let unfinished = missing.map(Unfinished::Skipped);
    ScenarioReport { scenario, observations: Vec::new(), unfinished }
}

/// A story in a guest.
struct GuestStory {
    scenario: &'static Scenario,
    /// The place of the scenario's report.
    report: usize,
    tell: fn(&Vm, &mut Observations) -> Told,
    seen: Observations,
}

/// The stories to be told in one guest, in the order in which they are.
fn stories(reports: &[ScenarioReport], boot: Boot, lacking: &[Protection]) -> Vec<GuestStory> {
    let (mut stories, mut last) = (Vec::new(), Vec::new());
    for (report, ScenarioReport { scenario, unfinished, .. }) in reports.iter().enumerate() {
        for story in scenario.stories {
            let (place, tell, stories) = match *story {
                Story::Guest(place, tell) => (place, tell, &mut stories),
                Story::Last(place, tell) => (place, tell, &mut last),
                Story::Kernel(_) => continue,
            };
            if place == boot && unfinished.is_none() {
                let seen = Observations::new(Some(boot), lacking);
                stories.push(GuestStory { scenario, report, tell, seen });
            }
        }
    }
    stories.append(&mut last);
    stories
}

struct Run<'a> {
    kernel: &'a GuestKernel,
    settings: Settings<'a>,
    reports: Vec<ScenarioReport>,
    troubled_guests: Vec<TroubledGuest>,
    /// Whether some guest has got so far as to be asked.
    has_booted: bool,
}

impl Run<'_> {
    fn read_configurations(&mut self) {
        for report in self.reports.iter_mut().filter(|report| report.unfinished.is_none()) {
            for story in report.scenario.stories {
                if let Story::Kernel(tell) = story {
                    let mut seen = Observations::new(None, self.settings.lacking);
                    if let Err(error) = tell(self.kernel, &mut seen) {
                        report.unfinished = Some(Unfinished::Failed(error.to_string()));
                    }
                    report.observations.extend(seen.into_list());
                }
            }
        }
    }

    /// Tells stories in a guest, and in another one those that a story leaves untold by ending its
    /// guest. If a guest is lost, or does not end well, none of its stories is to be trusted.
    fn tell(&mut self, boot: Boot, mut stories: Vec<GuestStory>) {
        while !stories.is_empty() {
            let told = self.tell_in_guest(boot, &mut stories).unwrap_or_else(|trouble| {
                let name = boot.name();
                for story in &stories {
                    self.leave(
                        story.report,
                        match trouble.at_boot {
                            true => Unfinished::NotAsked(format!(
                                "the {name} guest did not boot: {trouble}"
                            )),
                            false => {
                                Unfinished::Failed(format!("the {name} guest was lost: {trouble}"))
                            }
                        },
                    );
                }
                if trouble.at_boot && !self.has_booted {
                    let why = format!(
                        "no guest was tried after the {name} guest did not boot: {trouble}"
                    );
                    self.leave_all_guests(&why);
                }
                let (error, console) = (trouble.to_string(), trouble.console);
                self.troubled_guests.push(TroubledGuest { boot, error, console });
                stories.len()
            });
            for story in stories.drain(..told) {
                self.reports[story.report].observations.extend(story.seen.into_list());
            }
        }
    }

    /// Gives the number of stories told, in their order.
    fn tell_in_guest(
        &mut self,
        boot: Boot,
        stories: &mut [GuestStory],
    ) -> Result<usize, Box<Trouble>> {
        let Settings { vmm, vcpus, .. } = self.settings;
        let config = VmConfig {
            vmm,
            vcpus,
            parameters: boot.parameters(),
            requested: boot.requested(),
            special: boot.special(),
        };
        let needs = stories.iter().flat_map(|story| story.scenario.needs);
        let modules: Vec<_> = needs.flat_map(|need| need.modules(self.kernel, vmm)).collect();
        // Nothing is told that needs what is not to be had.
        let modules = self.kernel.modules(&modules).map_err(VmError::from)?;
        let mut initramfs = Initramfs::new().with_modules(modules);
        if let Some(table) = boot.acpi_table() {
            initramfs = initramfs.with_acpi_table(table);
        }
        let vm = Vm::boot(self.kernel, &initramfs, config)?;
        self.has_booted = true;
        if boot.special() == Special::Iommu {
            vm.load_iommu_driver().map_err(|error| vm.trouble(error.into()))?;
        }
        self.tell_to_the_end(boot, &vm, stories).map_err(|error| vm.trouble(error))
    }

    fn tell_to_the_end(
        &mut self,
        boot: Boot,
        vm: &Vm,
        stories: &mut [GuestStory],
    ) -> Result<usize, VmError> {
        let all = stories.len();
        let mut remaining: Vec<(&mut GuestStory, AfterLoad)> = Vec::new();
        for (place, story) in stories.iter_mut().enumerate() {
            match (story.tell)(vm, &mut story.seen) {
                Ok(Some(rest)) => remaining.push((story, rest)),
                Ok(None) => {}
                Err(error @ VmError::Died) => {
                    self.note(boot, vm, story, &error);
                    for (untold, _) in remaining {
                        self.fail(untold.report, format!("{} ended its guest", story.scenario.id));
                    }
                    return Ok(place + 1);
                }
                Err(error) => self.survive(boot, vm, story, error)?,
            }
        }
        if !remaining.is_empty() {
            vm.load_driver()?;
        }
        for (story, rest) in remaining {
            if let Err(error) = rest(vm, &mut story.seen) {
                self.survive(boot, vm, story, error)?;
            }
        }
        vm.power_off()?;
        Ok(all)
    }

    /// An error in a story is that story's, unless the guest is lost.
    fn survive(
        &mut self,
        boot: Boot,
        vm: &Vm,
        story: &GuestStory,
        error: VmError,
    ) -> Result<(), VmError> {
        if error.guest_is_lost() {
            return Err(error);
        }
        let error = Box::<Trouble>::from(error);
        self.fail(story.report, format!("in the {} guest: {error}", boot.name()));
        self.note(boot, vm, story, &error);
        Ok(())
    }

    /// Keeps what the guest's console says of it.
    fn note(&mut self, boot: Boot, vm: &Vm, story: &GuestStory, error: &dyn Display) {
        let (error, console) = (format!("{}: {error}", story.scenario.id), vm.console_tail());
        self.troubled_guests.push(TroubledGuest { boot, error, console });
    }

    /// Leaves everything that would be asked in a guest.
    fn leave_all_guests(&mut self, why: &str) {
        for report in 0..self.reports.len() {
            let stories = self.reports[report].scenario.stories;
            if stories.iter().any(|story| !matches!(story, Story::Kernel(_))) {
                self.leave(report, Unfinished::NotAsked(why.to_owned()));
            }
        }
    }

    /// A kernel that has died in its first guest would in the others.
    fn may_boot(&self) -> bool {
        self.has_booted || self.troubled_guests.is_empty()
    }

    fn fail(&mut self, report: usize, why: String) {
        self.leave(report, Unfinished::Failed(why));
    }

    /// The first reason counts.
    fn leave(&mut self, report: usize, why: Unfinished) {
        self.reports[report].unfinished.get_or_insert(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::CATALOGUE;

    fn reports() -> Vec<ScenarioReport> {
        let blank =
            |scenario| ScenarioReport { scenario, observations: Vec::new(), unfinished: None };
        CATALOGUE.iter().map(blank).collect()
    }

    fn ids(reports: &[ScenarioReport], boot: Boot) -> Vec<&'static str> {
        let stories = stories(reports, boot, &[]);
        stories.iter().map(|story| story.scenario.id).collect()
    }

    #[test]
    fn what_leaves_a_guest_in_disorder_is_told_last() {
        assert_eq!(ids(&reports(), Boot::Offline), ["VM6", "VM17", "VM14"]);
    }

    #[test]
    fn a_skipped_scenario_is_told_in_no_guest() {
        let mut reports = reports();
        assert_eq!(ids(&reports, Boot::Lockdown), ["VM22"]);
        let lockdown = reports.iter_mut().find(|report| report.scenario.id == "VM22").unwrap();
        lockdown.unfinished = Some(Unfinished::Skipped("no lockdown".to_owned()));
        assert!(ids(&reports, Boot::Lockdown).is_empty());
        assert!(!ids(&reports, Boot::Plain).contains(&"VM22"));
    }
}
