#pragma once

// Files that are whole or not there, whenever a process or a machine stops.

#include <cstdint>
#include <string>

namespace shardwright {

/// A file that is written under a temporary name beside its own. EnvironmentError, naming it, where the disk is full or
/// the folder cannot be written.
class DurableFile {
public:
    explicit DurableFile(std::string path);
    /// Without commit() nothing is left, and what was there before stays.
    ~DurableFile();
    DurableFile(const DurableFile&) = delete;
    DurableFile& operator=(const DurableFile&) = delete;

    void append(const void* data, std::int64_t bytes);
    /// Gives the file its name for good: its bytes, the name and the folder all reach the disk.
    void commit();

private:
    std::string m_path;
    std::string m_temporary;
    int m_descriptor = -1;
};

/// A whole text. To what is no file (/dev/stdout, a named pipe) it is written as it is.
void writeFileDurably(const std::string& path, const std::string& text);

/// What writeFileDurably(path) needs, before the work whose result it is to take: InputError or EnvironmentError.
void requireWritable(const std::string& path);
/// Makes the folder and sees that files can be made in it.
void requireWritableFolder(const std::string& path);

/// Whether something is there that a file would replace.
bool isFileThere(const std::string& path);

} // namespace shardwright
