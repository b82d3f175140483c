//! The requester IDs of functions, as an IOMMU sees them.

use super::header::register;
use super::test_machine::*;
use super::{FunctionAddress, InterruptPin};
use crate::dma::Requester;

fn requester(machine: &Machine, function: FunctionAddress) -> FunctionAddress {
    let id = machine.handles(function).state.id();
    u16::try_from(id).unwrap().into()
}

#[test]
fn a_function_on_pci_express_has_its_address_as_requester_id() {
    let machine = Machine::new();
    for function in [FIRST, SECOND, BELOW_PORT] {
        assert_eq!(requester(&machine, function), function);
    }
}

#[test]
fn behind_a_bridge_to_conventional_pci_the_requester_id_is_its_secondary_bus() {
    let machine = Machine::new();
    assert_eq!(requester(&machine, BELOW_BRIDGE), address(2, 0, 0));
    assert_eq!(requester(&machine, NESTED), address(2, 0, 0));
}

#[test]
fn requester_ids_follow_the_bus_numbers() {
    let machine = Machine::new();
    // Secondary and subordinate bus: 5 to 5 below the port, 8 to 9 below the bridge.
    machine.write_config_u16(PORT, register::SECONDARY_BUS, 0x0505);
    machine.write_config_u16(BRIDGE, register::SECONDARY_BUS, 0x0908);
    assert_eq!(requester(&machine, BELOW_PORT), address(5, 0, 0));
    assert_eq!(requester(&machine, BELOW_BRIDGE), address(8, 0, 0));
    assert_eq!(requester(&machine, NESTED), address(8, 0, 0));
    assert_eq!(requester(&machine, FIRST), FIRST);
    machine.write_config_u16(address(8, 1, 0), register::SECONDARY_BUS, 0x0909);
    assert_eq!(requester(&machine, NESTED), address(8, 0, 0));
}

#[test]
fn a_function_outside_of_a_topology_has_requester_id_0() {
    let (_, handles) = function(InterruptPin::A, &Default::default(), &Default::default());
    assert_eq!(handles.state.id(), 0);
}
