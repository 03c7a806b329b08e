#pragma once

// Reads and writes files in blocks, several of them under way at once where the system can.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace shardwright {

/// What O_DIRECT asks of offsets, lengths and memory on every common block device.
constexpr std::int64_t kIoAlignment = 4096;

/// Not thread-safe. Memory needs no alignment: bytes go through aligned blocks. A file's last block is written whole,
/// so a file is longer than its content by less than one block.
class BlockIo {
public:
    virtual ~BlockIo() = default;
    /// 0, or an errno.
    virtual int read(int descriptor, std::byte* to, std::int64_t bytes) = 0;
    virtual int write(int descriptor, const std::byte* from, std::int64_t bytes) = 0;
    virtual std::string name() const = 0;
};

/// Through io_uring where the build has liburing and the kernel allows it, else through pread and pwrite.
std::unique_ptr<BlockIo> makeBlockIo();
/// pread and pwrite.
std::unique_ptr<BlockIo> makePlainIo();

} // namespace shardwright
