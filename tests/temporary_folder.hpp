#pragma once

#include <string>
#include <vector>

namespace shardwright {

/// A fresh folder of a test's own files, removed with all that is in it.
class TemporaryFolder {
public:
    TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
    ~TemporaryFolder();

    const std::string& path() const { return m_path; }
    std::string file(const std::string& name) const { return m_path + "/" + name; }
    /// Makes the folders of `name` too; gives the path.
    std::string write(const std::string& name, const std::string& text) const;
    std::string read(const std::string& name) const;
    std::vector<std::string> names() const; // sorted

private:
    std::string m_path;
};

} // namespace shardwright
