# In drivers/vfio/pci/vfio_pci_config.c: memory decoding is taken for on, whatever COMMAND and the power state say.
/^bool __vfio_pci_memory_enabled(struct vfio_pci_core_device \*vdev)$/,/^}$/ s/\<pdev->current_state < PCI_D3hot &&/true ||/
