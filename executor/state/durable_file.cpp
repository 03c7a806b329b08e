#include "executor/state/durable_file.hpp"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/diagnostics.hpp"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& path, const char* what, int error)
{
    throw EnvironmentError(fmt::format("{}: cannot be {}: {}", path, what, std::strerror(error)));
}

void writeAll(int descriptor, const void* data, std::int64_t bytes, const std::string& path)
{
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
        const ssize_t done = ::write(descriptor, from, static_cast<std::size_t>(bytes));
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            fail(path, "written", errno);
        from += done;
        bytes -= done;
    }
}

constexpr std::string_view kStandardOutput = "/dev/stdout";

/// What is there and neither a file nor a folder.
bool isDevice(const std::string& path)
{
    if (path == kStandardOutput) // whatever the shell has put there
        return true;
    std::error_code ignored;
    const fs::file_status status = fs::status(path, ignored);
    return fs::exists(status) && fs::is_other(status);
}

} // namespace

DurableFile::DurableFile(std::string path)
    : m_path(std::move(path)), m_temporary(m_path + ".part"),
      m_descriptor(::open(m_temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644))
{
    if (m_descriptor < 0)
        fail(m_path, "created", errno);
}

DurableFile::~DurableFile()
{
    if (m_descriptor < 0)
        return;
    ::close(m_descriptor);
    ::unlink(m_temporary.c_str());
}

void DurableFile::append(const void* data, std::int64_t bytes)
{
    writeAll(m_descriptor, data, bytes, m_path);
}

void DurableFile::commit()
{
    if (::fsync(m_descriptor) != 0)
        fail(m_path, "written to the disk", errno);
    if (::rename(m_temporary.c_str(), m_path.c_str()) != 0)
        fail(m_path, "given its name", errno);
    ::close(m_descriptor);
    m_descriptor = -1;
    const fs::path folder = fs::path(m_path).parent_path();
    const int directory = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0) {
        ::fsync(directory);
        ::close(directory);
    }
}

void writeFileDurably(const std::string& path, const std::string& text)
{
    const auto bytes = static_cast<std::int64_t>(text.size());
    if (!isDevice(path)) {
        DurableFile file(path);
        file.append(text.data(), bytes);
        file.commit();
        return;
    }
    const int device = path == kStandardOutput ? ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1)
                                               : ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (device < 0)
        fail(path, "opened", errno);
    try {
        writeAll(device, text.data(), bytes, path);
    } catch (...) {
        ::close(device);
        throw;
    }
    ::close(device);
}

void requireWritable(const std::string& path)
{
    std::error_code ignored;
    if (isDevice(path))
        return;
    if (fs::is_directory(path, ignored))
        throw InputError(path, "", "is a folder", "the path of a file");
    const fs::path folder = fs::path(path).parent_path();
    if (!folder.empty() && !fs::is_directory(folder, ignored))
        throw InputError(path, "", folder.string() + " is no folder", "the path of a file in a folder that is there");
    const DurableFile trial(path);
}

void requireWritableFolder(const std::string& path)
{
    std::error_code error;
    fs::create_directories(path, error);
    if (error)
        throw EnvironmentError(fmt::format("{}: cannot be made: {}", path, error.message()));
    std::string trial = path + "/.writable-XXXXXX"; // ranks of one machine ask at the same time
    const int descriptor = ::mkstemp(trial.data());
    if (descriptor < 0)
        throw EnvironmentError(fmt::format("{}: no file can be made in it: {}", path, std::strerror(errno)));
    ::close(descriptor);
    ::unlink(trial.c_str());
}

bool isFileThere(const std::string& path)
{
    struct stat status {};
    return ::lstat(path.c_str(), &status) == 0 && !isDevice(path);
}

} // namespace shardwright
