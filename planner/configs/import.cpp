#include <filesystem>

#include <fmt/format.h>

#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "planner/configs/configs.hpp"
#include "planner/configs/hjson.hpp"

namespace shardwright {

namespace {

/// JSON starts with a brace, after Hjson's comments; YAML maps of Accelerate do not.
bool looksLikeJson(const std::string& text)
{
    const std::string bare = withoutHjsonComments(text);
    const std::size_t first = bare.find_first_not_of(" \t\r\n");
    return first != std::string::npos && (bare[first] == '{' || bare[first] == '[');
}

ConfigFileReader besideFile(const std::string& file)
{
    return [file](const std::string& path) {
        const std::filesystem::path beside = std::filesystem::path(file).parent_path() / path;
        std::error_code problem;
        return readTextFile(std::filesystem::exists(beside, problem) ? beside.string() : path);
    };
}

int nodesOf(const ImportedConfig& config, std::int64_t nodes)
{
    if (nodes > kMostNodes)
        throw InputError(config.file, "", fmt::format("runs on {} nodes", nodes),
                         fmt::format("at most {}", kMostNodes));
    return static_cast<int>(nodes);
}

} // namespace

ImportedConfig importConfig(const std::string& text, const std::string& file, const ImportContext& context)
{
    DeepSpeedContext deepSpeed;
    deepSpeed.world = context.world;
    deepSpeed.hiddenSize = context.hiddenSize;
    if (looksLikeJson(text))
        return readDeepSpeedJson(text, file, deepSpeed);
    return readAccelerateYaml(text, file, deepSpeed, context.readFile ? context.readFile : besideFile(file));
}

Scenario scenarioOf(const ImportedConfig& config, const Model& model, const Cluster& cluster, const Training& base)
{
    Scenario scenario;
    scenario.name = std::filesystem::path(config.file).stem().string();
    scenario.question = fmt::format("What does {} cost for {} on {}?", config.file, model.id, cluster.id);
    scenario.file = config.file;
    scenario.model = model;
    scenario.cluster = cluster;
    scenario.training = applied(config.run.training, base);
    scenario.strategies = {config.run.strategy};
    const Json::json_pointer checkpoints("/activation_checkpointing/number_checkpoints");
    if (const Json& carried = config.run.carriedDeepSpeed; carried.contains(checkpoints)) {
        const Json& number = carried[checkpoints];
        const std::int64_t blocks = model.architecture.layers;
        if (number.is_number_integer() && number >= 1 && number < blocks &&
            scenario.training.checkpointing == Checkpointing::Full)
            scenario.training.checkpointSegment = static_cast<int>(ceilDivide(blocks, number.get<std::int64_t>()));
    }

    const LaunchSettings& launch = config.run.launch;
    if (launch.processes > 0) {
        const std::int64_t perNode = ceilDivide(launch.processes, launch.nodes);
        if (launch.nodes == 1 && launch.processes > cluster.gpusPerNode) {
            // A ds_config.json knows the number of ranks, not how they stand in nodes.
            if (launch.processes % cluster.gpusPerNode != 0)
                throw InputError(config.file, "",
                                 fmt::format("runs {} processes, and {} has {} GPUs per node", launch.processes,
                                             cluster.id, cluster.gpusPerNode),
                                 "a multiple of that");
            scenario.cluster.nodes = nodesOf(config, launch.processes / cluster.gpusPerNode);
        } else if (perNode > cluster.gpusPerNode) {
            throw InputError(config.file, "num_processes",
                             fmt::format("{} processes per machine, and {} has {} GPUs per node", perNode, cluster.id,
                                         cluster.gpusPerNode),
                             "a cluster with more GPUs per node, or fewer processes");
        } else {
            scenario.cluster.gpusPerNode = static_cast<int>(perNode);
            scenario.cluster.nodes = nodesOf(config, launch.nodes);
        }
    }
    return scenario;
}

} // namespace shardwright
