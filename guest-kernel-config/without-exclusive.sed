# In drivers/virtio/virtio_mem.c: a driver that claims its region as before, but not as IORESOURCE_EXCLUSIVE.
/^static int virtio_mem_create_resource(struct virtio_mem \*vm)$/,/^}$/ s/\<IORESOURCE_EXCLUSIVE\>/0/
