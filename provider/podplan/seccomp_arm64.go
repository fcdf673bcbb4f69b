package podplan

const auditArch = 0xC00000B7 // AUDIT_ARCH_AARCH64
