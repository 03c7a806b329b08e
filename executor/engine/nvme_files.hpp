#pragma once

// Buffers on NVMe: files in a folder, read and written past the page cache where the file system allows it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/units.hpp"

namespace shardwright {

/// One rank's files. EnvironmentError with one clear cause where the folder is missing, full or read-only. Files have
/// no names: the disk is free again however the process ends.
class NvmeFiles {
public:
    /// Makes a folder of its own for the rank within `folder`.
    NvmeFiles(const std::string& folder, std::int64_t rank);
    ~NvmeFiles();
    NvmeFiles(const NvmeFiles&) = delete;
    NvmeFiles& operator=(const NvmeFiles&) = delete;

    /// A file of `bytes` zeros, its blocks reserved.
    int create(Bytes bytes);
    void remove(int file) noexcept;
    void read(int file, std::byte* to, Bytes bytes);
    void write(int file, const std::byte* from, Bytes bytes);

    /// Bytes of all buffers that lie in files, as far as the file system holds them; the padding of last blocks left
    /// out.
    Bytes onDisk() const;
    /// "io_uring, O_DIRECT", "pread/pwrite": how bytes move.
    std::string method() const;

private:
    struct Parts;
    std::unique_ptr<Parts> m_parts;
};

} // namespace shardwright
