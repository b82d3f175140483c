# In drivers/vfio/pci/vfio_pci_core.c: mappings of BARs stay when decoding is turned off, and over a reset.
/^static void vfio_pci_zap_bars(struct vfio_pci_core_device \*vdev)$/,/^}$/ s/\<unmap_mapping_range(/if (false) &/
