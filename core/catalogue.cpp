#include "core/catalogue.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "core/diagnostics.hpp"

namespace shardwright {

namespace fs = std::filesystem;

namespace {

bool holdsCatalogue(const fs::path& folder)
{
    std::error_code ignored;
    return fs::is_directory(folder / "models", ignored) && fs::is_directory(folder / "scenarios" / "clusters", ignored);
}

} // namespace

std::string homeFolder()
{
    if (const char* home = std::getenv("SHARDWRIGHT_HOME")) {
        if (!holdsCatalogue(home))
            throw EnvironmentError(std::string("SHARDWRIGHT_HOME is ") + home +
                                   ", but there is no models/ and scenarios/clusters/ in it");
        return home;
    }
    std::error_code error;
    fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
    while (!error && !folder.empty()) {
        if (holdsCatalogue(folder))
            return folder.string();
        if (folder == folder.root_path())
            break;
        folder = folder.parent_path();
    }
    if (holdsCatalogue(SHARDWRIGHT_SOURCE_DIR))
        return SHARDWRIGHT_SOURCE_DIR;
    throw EnvironmentError("the folders models/ and scenarios/ that ship with Shardwright were not found: set "
                           "SHARDWRIGHT_HOME to the folder that holds them");
}

std::vector<std::string> modelIds()
{
    std::vector<std::string> ids;
    for (const auto& entry : fs::directory_iterator(fs::path(homeFolder()) / "models"))
        if (fs::exists(entry.path() / "config.json"))
            ids.push_back(entry.path().filename().string());
    std::sort(ids.begin(), ids.end());
    return ids;
}

std::vector<std::string> clusterIds()
{
    std::vector<std::string> ids;
    for (const auto& entry : fs::directory_iterator(fs::path(homeFolder()) / "scenarios" / "clusters"))
        if (entry.path().extension() == ".json")
            ids.push_back(entry.path().stem().string());
    std::sort(ids.begin(), ids.end());
    return ids;
}

} // namespace shardwright
