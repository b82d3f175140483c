# A bare-metal guest: it makes the register and memory accesses that it finds in its mailbox.
#
# Entered by PVH in 32-bit protected mode at LOAD, it maps the first 1.5 TiB onto themselves, in pages
# of 2 MiB as far as 8 GiB and of 1 GiB beyond, and goes to long mode. The boot processor sends READY
# over the second serial port and halts until a byte arrives there. Then it carries out the commands at
# MAILBOX and sends DONE:
#
#     count u64, and for each command     operation u8, width u8, 6 bytes of padding, address u64,
#                                         value u64, over which the result is written
#
# The other processors, once started by INIT and SIPI at AP_TRAMPOLINE, read and write ("hammer") the
# memory range in their control block.
#
# On #UD or #MC the boot processor records the exception at EXCEPTION and goes on with the next command.
# All other exceptions are fatal: they have no gate in the IDT, so the first one is a triple fault.
#
# Labels start with .L, which makes them local: this is linked with Rust code, which would otherwise
# call a label `read` instead of the C library's function.

    .set LOAD, 0x200000
    .set TABLES, 0x300000           # PML4, 3 PDPTs, then 8 page directories
    .set CONTROL, 0x400000          # of processor n at CONTROL + 64 * n
    .set INTERRUPTS, 0x3fd000       # the interrupt descriptor table
    .set EXCEPTION, 0x3fe000        # vector, RIP, MCG_STATUS; of banks 0 and 1, STATUS and ADDR
    .set COPY, 0x520000             # where a copy goes
    .set MAILBOX, 0x600000
    .set AP_COUNT, 0x3ff000         # how many have been started
    .set AP_TRAMPOLINE, 0x10000
    .set SERIAL, 0x2f8
    .set READY, 'R'
    .set DONE, 'D'
    .set MASTER, 0x20               # the 8259 that IRQ 3, the serial port's, comes to
    .set SLAVE, 0xa0
    .set VECTORS, 0x20              # that of IRQ 0, and those that follow

# Has the first \count entries of \table map pages of 2^\bits bytes onto themselves.
    .macro identity_map table, bits, count
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $\bits, %eax
    orl $0x83, %eax
    movl %eax, (\table)(, %ecx, 8)
    movl %ecx, %eax
    shrl $(32 - \bits), %eax
    movl %eax, (\table + 4)(, %ecx, 8)
    incl %ecx
    cmpl $(\count), %ecx
    jne 1b
    .endm

# Has the first \count entries of \table point to the tables at \lower.
    .macro link_tables table, lower, count
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    shll $12, %eax
    addl $(\lower + 3), %eax
    movl %eax, (\table)(, %ecx, 8)
    movl $0, (\table + 4)(, %ecx, 8)
    incl %ecx
    cmpl $(\count), %ecx
    jne 1b
    .endm

    .code32
moat_program_start:
    cld
    movl $TABLES, %edi
    xorl %eax, %eax
    movl $(12 * 1024), %ecx
    rep stosl
    identity_map TABLES + 0x1000, 30, 3 * 512
    identity_map TABLES + 0x4000, 21, 8 * 512
    link_tables TABLES, TABLES + 0x1000, 3
    link_tables TABLES + 0x1000, TABLES + 0x4000, 8
    # The trampoline for the other processors.
    movl $(LOAD + (.Lap_start - moat_program_start)), %esi
    movl $AP_TRAMPOLINE, %edi
    movl $(.Lap_end - .Lap_start), %ecx
    rep movsb
    movl $0, AP_COUNT
    xorl %ebp, %ebp

# With %ebp 0 for the boot processor, 1 for any other.
.Lenter_long_mode:
    movl $TABLES, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x260, %eax                # PAE, machine checks, SSE
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000001, %eax
    movl %eax, %cr0
    lgdt LOAD + (.Lgdt_pointer - moat_program_start)
    ljmp $0x08, $(LOAD + (.Llong_mode - moat_program_start))

    .balign 8
.Lgdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: 64-bit code
    .quad 0x00cf93000000ffff        # 0x10: data
    .quad 0x00cf9b000000ffff        # 0x18: 32-bit code
.Lgdt_pointer:
    .word .Lgdt_pointer - .Lgdt - 1
    .long LOAD + (.Lgdt - moat_program_start)

# In real mode, at AP_TRAMPOLINE.
    .code16
.Lap_start:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (.Lap_gdt_pointer - .Lap_start)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $0x18, $(LOAD + (.Lap_protected_mode - moat_program_start))
.Lap_gdt_pointer:
    .word .Lgdt_pointer - .Lgdt - 1
    .long LOAD + (.Lgdt - moat_program_start)
.Lap_end:

    .code32
.Lap_protected_mode:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $1, %ebp
    jmp .Lenter_long_mode

    .code64
.Llong_mode:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    testl %ebp, %ebp
    jnz .Lhammer
    movl $LOAD, %esp
    movl $(LOAD + (.Linvalid_opcode - moat_program_start)), %eax
    movl $6, %ecx
    call .Lset_gate
    movl $(LOAD + (.Lmachine_check - moat_program_start)), %eax
    movl $18, %ecx
    call .Lset_gate
    movl $(LOAD + (.Lserial_interrupt - moat_program_start)), %eax
    movl $(VECTORS + 3), %ecx
    call .Lset_gate
    lidt LOAD + (.Linterrupts_pointer - moat_program_start)
    call .Llisten
    movb $READY, %al
    call .Lsend_byte

# Interrupts are off except during the HLT, so none can arrive between the check and the HLT.
.Lsleep:
    movw $(SERIAL + 5), %dx
    inb %dx, %al
    testb $1, %al
    jnz .Lwake
    sti
    hlt
    cli
    jmp .Lsleep
.Lwake:
    movw $SERIAL, %dx
    inb %dx, %al

# %r12 the command, %r13 how many there are from it on. %bl operation, %bh width, %r8 address, %r9
# value, %r10 result.
    movl $(MAILBOX + 8), %r12d
    movq MAILBOX, %r13
.Lcommand:
    testq %r13, %r13
    jz .Ldone
    movw (%r12), %bx
    movq 8(%r12), %r8
    movq 16(%r12), %r9
    xorl %r10d, %r10d
    cmpb $0, %bl
    je .Lread
    cmpb $1, %bl
    je .Lwrite
    cmpb $2, %bl
    je .Lfill
    cmpb $3, %bl
    je .Lverify
    cmpb $4, %bl
    je .Lout_port
    cmpb $5, %bl
    je .Lcopy
    cmpb $6, %bl
    je .Lstore_string
    cmpb $7, %bl
    je .Lcall_address
    cmpb $8, %bl
    je .Ladd_vector
    cmpb $9, %bl
    je .Lstore_vector
    cmpb $10, %bl
    je .Ldrive_queue
    cmpb $11, %bl
    je .Lread_tsc
    ud2

.Lanswer:
    movq %r10, 16(%r12)
    addq $24, %r12
    decq %r13
    jmp .Lcommand

.Ldone:
    movb $DONE, %al
    call .Lsend_byte
    jmp .Lsleep

.Lread:
    cmpb $1, %bh
    je 1f
    cmpb $2, %bh
    je 2f
    cmpb $4, %bh
    je 4f
    movq (%r8), %r10
    jmp .Lanswer
1:  movzbl (%r8), %r10d
    jmp .Lanswer
2:  movzwl (%r8), %r10d
    jmp .Lanswer
4:  movl (%r8), %r10d
    jmp .Lanswer

.Lwrite:
    cmpb $1, %bh
    je 1f
    cmpb $2, %bh
    je 2f
    cmpb $4, %bh
    je 4f
    movq %r9, (%r8)
    jmp .Lanswer
1:  movb %r9b, (%r8)
    jmp .Lanswer
2:  movw %r9w, (%r8)
    jmp .Lanswer
4:  movl %r9d, (%r8)
    jmp .Lanswer

# Writes its own address to every 512th byte of [%r8, %r8 + %r9).
.Lfill:
    addq %r8, %r9
1:  movq %r8, (%r8)
    addq $512, %r8
    cmpq %r9, %r8
    jb 1b
    jmp .Lanswer

# Counts the addresses where the memory does not hold that.
.Lverify:
    addq %r8, %r9
1:  cmpq %r8, (%r8)
    je 2f
    incq %r10
2:  addq $512, %r8
    cmpq %r9, %r8
    jb 1b
    jmp .Lanswer

.Lread_tsc:
    rdtsc
    shlq $32, %rdx
    leaq (%rax, %rdx), %r10
    jmp .Lanswer

.Lout_port:
    movl %r8d, %edx
    movl %r9d, %eax
    outb %al, %dx
    jmp .Lanswer

# Copies %r9 quads from %r8.
.Lcopy:
    movq %r8, %rsi
    movl $COPY, %edi
    movq %r9, %rcx
    cld
    rep movsq
    jmp .Lanswer

# Fills %r9 quads at %r8 with the address.
.Lstore_string:
    movq %r8, %rdi
    movq %r8, %rax
    movq %r9, %rcx
    cld
    rep stosq
    jmp .Lanswer

.Lcall_address:
    call *%r8
    jmp .Lanswer

# KVM's emulator supports neither of these two. The result is %xmm0, which was zero before.
.Ladd_vector:
    pxor %xmm0, %xmm0
    paddq (%r8), %xmm0
    movq %xmm0, %r10
    jmp .Lanswer

.Lstore_vector:
    movlps %xmm0, (%r8)
    jmp .Lanswer

# Drives a virtqueue: for each of %r9 chains, whose heads are in the available ring already, it makes
# that chain available, notifies the device, and waits until one more is used. At %r8:
#
#     available ring u64, used ring u64, where to notify u64, what to write there u64
#
# and as many bytes of that are written as the command is wide. The result is how many were used.
.Ldrive_queue:
    movq (%r8), %rsi
    movq 8(%r8), %rdi
    movq 16(%r8), %rdx
    movq 24(%r8), %rax
    movzwl 2(%rdi), %ecx
1:  cmpq %r9, %r10
    jae .Lanswer
    incw 2(%rsi)
    cmpb $2, %bh
    je 2f
    movl %eax, (%rdx)
    jmp 3f
2:  movw %ax, (%rdx)
3:  incw %cx
4:  pause
    cmpw %cx, 2(%rdi)
    jne 4b
    incq %r10
    jmp 1b

# Has interrupt %ecx go to %eax.
.Lset_gate:
    movzwl %ax, %edx
    shrq $16, %rax
    shlq $48, %rax
    orq %rdx, %rax
    movabsq $0x00008e0000080000, %rdx
    orq %rdx, %rax
    shll $4, %ecx
    movq %rax, INTERRUPTS(%rcx)
    ret

.Linterrupts_pointer:
    .word (VECTORS + 4) * 16 - 1
    .quad INTERRUPTS

.Linvalid_opcode:
    movl $6, %r10d
    jmp .Lexception

.Lmachine_check:
    movl $0x17a, %ecx
    movl $(EXCEPTION + 16), %edi
    call .Ltake_register
    movl $0x401, %ecx
    call .Ltake_register
    movl $0x402, %ecx
    call .Ltake_register
    movl $0x405, %ecx
    call .Ltake_register
    movl $0x406, %ecx
    call .Ltake_register
    movl $18, %r10d
.Lexception:
    movq (%rsp), %rax
    movq %r10, EXCEPTION
    movq %rax, EXCEPTION + 8
    movl $LOAD, %esp
    jmp .Lanswer

# Appends model-specific register %ecx to what is at %rdi, and clears the register.
.Ltake_register:
    rdmsr
    movl %eax, (%rdi)
    movl %edx, 4(%rdi)
    addl $8, %edi
    xorl %eax, %eax
    xorl %edx, %edx
    wrmsr
    ret

.Lsend_byte:
    movw $SERIAL, %dx
    outb %al, %dx
    ret

# Has the serial port raise IRQ 3 for received data, and masks all other IRQs at the 8259s.
.Llisten:
    movb $0x11, %al                 # edge-triggered, cascaded, and three words follow
    outb %al, $MASTER
    outb %al, $SLAVE
    movb $VECTORS, %al
    outb %al, $(MASTER + 1)
    movb $(VECTORS + 8), %al
    outb %al, $(SLAVE + 1)
    movb $4, %al                    # the slave is at IRQ 2
    outb %al, $(MASTER + 1)
    movb $2, %al
    outb %al, $(SLAVE + 1)
    movb $1, %al                    # of an 8086
    outb %al, $(MASTER + 1)
    outb %al, $(SLAVE + 1)
    movb $0xf7, %al
    outb %al, $(MASTER + 1)
    movb $0xff, %al
    outb %al, $(SLAVE + 1)
    movw $(SERIAL + 1), %dx         # received data
    movb $1, %al
    outb %al, %dx
    movw $(SERIAL + 4), %dx         # OUT2 lets interrupts out
    movb $0x0b, %al
    outb %al, %dx
    ret

# Only interrupts the HLT, at which %rax holds nothing.
.Lserial_interrupt:
    movb $0x20, %al
    outb %al, $MASTER
    iretq

# Control block: start u64, length u64, active u64, rounds u64, errors u64.
# While active, reads every 512th byte, which must hold its own address, and writes it back.
.Lhammer:
    movl $1, %esi
    lock xaddl %esi, AP_COUNT
    shll $6, %esi
    addl $CONTROL, %esi
1:  pause
    cmpq $0, 16(%rsi)
    je 1b
    movq (%rsi), %r8
    movq 8(%rsi), %r9
    addq %r8, %r9
2:  movq (%r8), %rax
    cmpq %r8, %rax
    je 3f
    lock incq 32(%rsi)
3:  movq %r8, (%r8)
    addq $512, %r8
    cmpq %r9, %r8
    jb 2b
    lock incq 24(%rsi)
    jmp 1b
moat_program_end:
