//! The catalogue: what a guest must do with device memory.
//!
//! Each file has cases and, at its end, the scenarios that they belong to. A case starts in a guest whose
//! virtio-mem driver has not been loaded yet, and may go on when it has. Cases share guests, because
//! booting takes longer than all cases together. Each scenario has a control: an observation that shows
//! that its check can fail.

mod iommu_group;
mod pci_bar;
mod vfio;
mod virtio_mem;

use std::sync::LazyLock;

use crate::framework::Scenario;

/// Every file's scenarios.
const FILES: [&[Scenario]; 21] = [
    virtio_mem::exclusion::SCENARIOS,
    virtio_mem::bar_over_region::SCENARIOS,
    virtio_mem::revocation::SCENARIOS,
    virtio_mem::unload::SCENARIOS,
    virtio_mem::host_view::SCENARIOS,
    virtio_mem::configuration::SCENARIOS,
    pci_bar::exclusion::SCENARIOS,
    pci_bar::revocation::SCENARIOS,
    pci_bar::drivers::SCENARIOS,
    pci_bar::page_boundary::SCENARIOS,
    vfio::memory::SCENARIOS,
    vfio::regions::SCENARIOS,
    vfio::interrupts::SCENARIOS,
    vfio::reset::SCENARIOS,
    vfio::dma_to_bar::SCENARIOS,
    vfio::iommu_dma::SCENARIOS,
    vfio::unbind::SCENARIOS,
    vfio::iommufd::SCENARIOS,
    iommu_group::topology::SCENARIOS,
    iommu_group::ownership::SCENARIOS,
    iommu_group::orders::SCENARIOS,
];

/// Every scenario, in the order of the ids: VM1 to VM22, P1 to P14, F1 to F18, G1 to G14.
pub fn catalogue() -> &'static [&'static Scenario] {
    static CATALOGUE: LazyLock<Vec<&'static Scenario>> = LazyLock::new(|| {
        let mut scenarios: Vec<_> = FILES.into_iter().flatten().collect();
        scenarios.sort_by_key(|scenario| order(scenario.id));
        scenarios
    });
    &CATALOGUE
}

/// Where an id comes in the order: a series, and a number in it.
fn order(id: &str) -> (Option<usize>, u32) {
    let (series, number) = id.split_at(id.find(|c: char| c.is_ascii_digit()).unwrap_or(id.len()));
    let place = ["VM", "P", "F", "G"].into_iter().position(|known| known == series);
    (place, number.parse().unwrap_or(0))
}

/// The id of a scenario that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no scenario {0}; `moat check --list` shows all of them")]
pub struct UnknownScenario(String);

/// The scenarios of these ids in the catalogue's order; all of them if none is named.
pub fn select(ids: &[String]) -> Result<Vec<&'static Scenario>, UnknownScenario> {
    let is = |id: &String, scenario: &Scenario| id.eq_ignore_ascii_case(scenario.id);
    let is_unknown = |id: &&String| !catalogue().iter().any(|scenario| is(id, scenario));
    match ids.iter().find(is_unknown) {
        Some(id) => Err(UnknownScenario(id.clone())),
        None => Ok(catalogue()
            .iter()
            .copied()
            .filter(|scenario| ids.is_empty() || ids.iter().any(|id| is(id, scenario)))
            .collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_scenario_has_an_id_of_its_own_and_a_case() {
        let ids: HashSet<_> = catalogue().iter().map(|scenario| scenario.id).collect();
        assert_eq!(ids.len(), catalogue().len());
        assert!(catalogue().iter().all(|scenario| !scenario.cases.is_empty()));
        assert!(catalogue().iter().all(|scenario| order(scenario.id).0.is_some()));
    }

    #[test]
    fn scenarios_are_selected_by_id_in_the_order_of_the_catalogue() {
        let ids = |names: &[&str]| -> Vec<_> {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            select(&names).unwrap().iter().map(|scenario| scenario.id).collect()
        };
        assert_eq!(ids(&["vm11", "VM3"]), ["VM3", "VM11"]);
        assert_eq!(ids(&[]).len(), catalogue().len());
        let error = select(&["VM3".to_owned(), "VM99".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no scenario VM99"), "{error}");
    }
}
