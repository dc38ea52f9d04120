"""The CPU ops' tests with our kernels on an emulated ARM processor, and torch on this one."""
