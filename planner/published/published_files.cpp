#include "planner/published/published_files.hpp"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"

namespace shardwright {

namespace fs = std::filesystem;

namespace {

std::vector<Scenario> readLines(const std::string& path)
{
    std::vector<Scenario> scenarios;
    std::vector<Finding> findings;
    std::istringstream text(readTextFile(path));
    std::string line;
    for (int number = 1; std::getline(text, line); ++number) {
        if (line.find_first_not_of(" \t\r") == std::string::npos)
            continue;
        const std::string place = path + ":" + std::to_string(number);
        try {
            scenarios.push_back(scenarioFromJson(parseJson(line, place), place));
        } catch (const InputError& error) {
            findings.insert(findings.end(), error.findings().begin(), error.findings().end());
        }
    }
    if (!findings.empty())
        throw InputError(std::move(findings));
    return scenarios;
}

void addFiles(const fs::path& folder, const std::vector<std::string>& endings, std::vector<std::string>& files)
{
    const auto before = static_cast<std::ptrdiff_t>(files.size());
    std::error_code absent; // a catalogue of one's own need not have published figures
    for (const auto& entry : fs::directory_iterator(folder, absent))
        if (std::find(endings.begin(), endings.end(), entry.path().extension().string()) != endings.end())
            files.push_back(entry.path().string());
    std::sort(files.begin() + before, files.end());
}

} // namespace

std::vector<Scenario> readPublishedFile(const std::string& path)
{
    if (fs::path(path).extension() == ".jsonl")
        return readLines(path);
    std::vector<Scenario> scenarios;
    scenarios.push_back(readScenario(path));
    return scenarios;
}

std::vector<std::string> publishedFiles()
{
    std::vector<std::string> files;
    const fs::path scenarios = fs::path(homeFolder()) / "scenarios";
    addFiles(scenarios / "published", {".json", ".jsonl"}, files);
    addFiles(scenarios, {".json"}, files);
    return files;
}

} // namespace shardwright
