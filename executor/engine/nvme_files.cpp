#include "executor/engine/nvme_files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <new>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/diagnostics.hpp"
#include "executor/engine/block_io.hpp"

namespace shardwright {

namespace {

[[noreturn]] void fail(const std::string& path, const char* what, int error)
{
    throw EnvironmentError(fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)));
}

struct OpenFile {
    std::string path;
    int descriptor = -1;
    Bytes bytes; // of the buffer; the file ends with the block that it ends in
};

} // namespace

struct NvmeFiles::Parts {
    std::string folder;
    bool direct = true; // until the file system refuses O_DIRECT
    std::map<int, OpenFile> files;
    int next = 0;
    std::unique_ptr<BlockIo> io = makeBlockIo();
};

NvmeFiles::NvmeFiles(const std::string& folder, std::int64_t rank) : m_parts(std::make_unique<Parts>())
{
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error))
        throw EnvironmentError(fmt::format("{}: is not a folder that NVMe buffers could have their files in", folder));
    // A name of its own: runs of several machines may share the folder, and one that was killed leaves its own there.
    m_parts->folder = fmt::format("{}/shardrun-rank-{}-XXXXXX", folder, rank);
    if (::mkdtemp(m_parts->folder.data()) == nullptr)
        fail(folder, "make a folder in it for NVMe buffers", errno);
}

NvmeFiles::~NvmeFiles()
{
    for (const auto& [id, file] : m_parts->files)
        ::close(file.descriptor);
    ::rmdir(m_parts->folder.c_str());
}

int NvmeFiles::create(Bytes bytes)
{
    const int id = m_parts->next++;
    OpenFile file{fmt::format("{}/buffer-{}", m_parts->folder, id), -1, bytes};
    const auto open = [&](int extra) {
        file.descriptor = ::open(file.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | extra, 0600);
    };
    if (m_parts->direct) {
        open(O_DIRECT);
        m_parts->direct = file.descriptor >= 0 || errno != EINVAL; // tmpfs and some overlays know no O_DIRECT
    }
    if (!m_parts->direct)
        open(0);
    if (file.descriptor < 0)
        fail(file.path, "make the file", errno);
    ::unlink(file.path.c_str()); // however this process ends, the disk is free again
    if (bytes > Bytes(0))
        if (const int error = ::posix_fallocate(file.descriptor, 0, roundUp(bytes.count(), kIoAlignment)); error != 0) {
            ::close(file.descriptor);
            fail(file.path, fmt::format("reserve {}", formatBinary(bytes)).c_str(), error);
        }
    m_parts->files.emplace(id, std::move(file));
    return id;
}

void NvmeFiles::remove(int file) noexcept
{
    const auto found = m_parts->files.find(file);
    if (found == m_parts->files.end())
        return;
    ::close(found->second.descriptor);
    m_parts->files.erase(found);
}

void NvmeFiles::read(int file, std::byte* to, Bytes bytes)
{
    const OpenFile& open = m_parts->files.at(file);
    if (const int error = m_parts->io->read(open.descriptor, to, bytes.count()); error != 0)
        fail(open.path, fmt::format("read {}", formatBinary(bytes)).c_str(), error);
}

void NvmeFiles::write(int file, const std::byte* from, Bytes bytes)
{
    const OpenFile& open = m_parts->files.at(file);
    if (const int error = m_parts->io->write(open.descriptor, from, bytes.count()); error != 0)
        fail(open.path, fmt::format("write {}", formatBinary(bytes)).c_str(), error);
}

Bytes NvmeFiles::onDisk() const
{
    Bytes bytes;
    for (const auto& [id, file] : m_parts->files) {
        struct stat status {};
        if (::fstat(file.descriptor, &status) == 0)
            bytes += std::min(file.bytes, Bytes(status.st_size));
    }
    return bytes;
}

std::string NvmeFiles::method() const
{
    return fmt::format("{}{}", m_parts->io->name(), m_parts->direct ? ", O_DIRECT" : "");
}

} // namespace shardwright
