// Writes the configuration of every strategy of a scenario in every format that can say it, for the conformance script:
//   export_all SCENARIO FOLDER
// FOLDER/<strategy>/<format>/ holds the files and expected.json with what the plan assumed.

#include <filesystem>
#include <fstream>

#include <fmt/core.h>

#include "core/deepspeed_options.hpp"
#include "core/json_cursor.hpp"
#include "core/scenario_file.hpp"
#include "planner/configs/configs.hpp"

namespace {

using namespace shardwright;

void writeText(const std::filesystem::path& path, const std::string& text)
{
    std::ofstream stream(path, std::ios::binary);
    stream << text;
    if (!stream.flush())
        throw EnvironmentError(path.string() + " cannot be written");
}

Json expected(const Scenario& scenario, const Strategy& strategy, const ConfigExport& exported)
{
    Json json = {{"format", nameOf(exported.format)}, {"processes", scenario.cluster.gpus()},
                 {"nodes", scenario.cluster.nodes},   {"training", toJson(scenario.training)},
                 {"strategy", toJson(strategy)},      {"launch", exported.launchCommand}};
    for (const ConfigNote& note : exported.notes)
        json["notes"].push_back({{"kind", nameOf(note.kind)}, {"setting", note.setting}, {"text", note.text}});
    return json;
}

} // namespace

int main(int argc, char** argv)
{
    if (argc != 3) {
        fmt::print(stderr, "export_all SCENARIO FOLDER\n");
        return 2;
    }
    try {
        const Scenario scenario = readScenario(argv[1]);
        const int perNode = scenario.cluster.gpusPerNode;
        std::vector<Strategy> strategies = scenario.strategies;
        for (const std::string& name : strategyNames())
            strategies.push_back(*strategyByName(name, perNode));
        int written = 0;
        for (const Strategy& strategy : strategies)
            for (const auto& [format, name] : EnumNames<ConfigFormat>::table) {
                const std::filesystem::path folder = std::filesystem::path(argv[2]) / strategy.name / std::string(name);
                try {
                    ExportOptions options;
                    options.folder = folder.string();
                    const ConfigExport exported = exportConfig(scenario, strategy, format, options);
                    std::filesystem::create_directories(folder);
                    for (const ConfigFile& file : exported.files)
                        writeText(folder / file.name, file.text);
                    writeText(folder / "expected.json", expected(scenario, strategy, exported).dump(2) + "\n");
                    ++written;
                } catch (const InputError&) {
                    continue; // this format cannot say this strategy
                }
            }
        fmt::print("{} configurations written\n", written);
        return written > 0 ? 0 : 1;
    } catch (const std::exception& error) {
        fmt::print(stderr, "{}\n", error.what());
        return 2;
    }
}
