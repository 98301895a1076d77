// half is in device.h.
