# In drivers/iommu/iommu.c: a driver that does DMA may bind whoever owns the group, and is counted as before.
/^int iommu_device_use_default_domain(struct device \*dev)$/,/^}$/ s/if (group->owner_cnt)/if (false)/
