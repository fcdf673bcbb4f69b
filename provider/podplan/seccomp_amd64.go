package podplan

const auditArch = 0xC000003E // AUDIT_ARCH_X86_64
