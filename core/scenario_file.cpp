#include "core/scenario_file.hpp"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/catalogue.hpp"
#include "core/cluster_file.hpp"
#include "core/json_cursor.hpp"
#include "core/model_file.hpp"
#include "core/published_file.hpp"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr const char* kSchema = "shardwright-scenario/1";

bool contains(const std::vector<std::string>& list, const std::string& word)
{
    return std::find(list.begin(), list.end(), word) != list.end();
}

/// `text` is an id that ships, or a path relative to the folder of the scenario's file.
std::string resolved(const std::string& text, const std::vector<std::string>& ids, const std::string& file)
{
    if (contains(ids, text) || fs::path(text).is_absolute())
        return text;
    const fs::path beside = fs::path(file).parent_path() / text;
    std::error_code ignored;
    return fs::exists(beside, ignored) ? beside.lexically_normal().string() : text;
}

/// The text of an object's "id" or "path"; exactly one of them is there.
std::optional<std::string> reference(const JsonCursor& cursor)
{
    if (cursor.has("id") == cursor.has("path")) {
        cursor.complain(cursor.has("id") ? "has both \"id\" and \"path\"" : "names nothing",
                        "\"id\" of what ships, or \"path\" relative to this file");
        return std::nullopt;
    }
    return cursor.find(cursor.has("id") ? "id" : "path")->asString();
}

/// Runs `read`, whose problems become findings at `cursor` or in the file that they are in.
template <typename Read> void collecting(const JsonCursor& cursor, Read read)
{
    try {
        read();
    } catch (const InputError& error) {
        cursor.findings().add(error);
    } catch (const NumberTooLarge& error) {
        cursor.complain(error.what(), "smaller numbers");
    }
}

void readModelSection(const JsonCursor& cursor, Scenario& scenario)
{
    const auto byName = [&](const std::string& text) {
        collecting(cursor, [&] { scenario.model = readModel(resolved(text, modelIds(), scenario.file)); });
    };
    const Json& json = cursor.json();
    if (json.is_string()) {
        byName(json.get<std::string>());
    } else if (json.is_object() && json.contains("model_type")) {
        collecting(cursor, [&] {
            scenario.model = modelFromJson(json, "inline", scenario.file, cursor.pointer());
            scenario.modelConfig = json.dump();
        });
    } else if (json.is_object()) {
        cursor.rejectUnknownKeys({"id", "path"});
        if (const auto text = reference(cursor))
            byName(*text);
    } else {
        cursor.complain("is not a model", "an id, a path, or a Hugging Face config as an object");
    }
}

void readClusterSection(const JsonCursor& cursor, Scenario& scenario)
{
    const auto byName = [&](const std::string& text) {
        collecting(cursor, [&] { scenario.cluster = readCluster(resolved(text, clusterIds(), scenario.file)); });
    };
    const Json& json = cursor.json();
    if (json.is_string()) {
        byName(json.get<std::string>());
    } else if (json.is_object() && json.contains("gpu")) {
        scenario.cluster = clusterFromJson(cursor, "inline");
    } else if (json.is_object()) {
        cursor.rejectUnknownKeys({"id", "path", "nodes", "gpus_per_node", "storage_bandwidth", "price_per_gpu_hour"});
        const auto text = reference(cursor);
        if (!text)
            return;
        byName(*text);
        cursor.read("gpus_per_node", scenario.cluster.gpusPerNode, 1, kMostGpusPerNode);
        cursor.read("nodes", scenario.cluster.nodes, 1, kMostNodes);
        readRunningCosts(cursor, scenario.cluster);
        if (!scenario.cluster.id.empty()) // else it could not be read, which is said already
            checkLinks(cursor, scenario.cluster);
    } else {
        cursor.complain("is not a cluster", "an id, a path, or an object as `shardplan clusters --describe` tells");
    }
}

/// Every predefined strategy but the native ones, which are the executor's; Megatron-LM's where its layers are trained.
void addPredefined(Scenario& scenario)
{
    for (const std::string& name : strategyNames()) {
        auto strategy = strategyByName(name, scenario.cluster.gpusPerNode);
        const std::string_view framework = frameworkOf(*strategy);
        const bool trains = framework != "megatron" || scenario.training.implementation == Implementation::Megatron;
        if (trains && framework != "native")
            scenario.strategies.push_back(std::move(*strategy));
    }
}

void readStrategies(const JsonCursor& root, Scenario& scenario)
{
    const auto list = root.find("strategies");
    if (!list) {
        addPredefined(scenario);
        return;
    }
    if (!list->expectArray())
        return;
    if (list->json().empty())
        list->complain("is empty", "at least one strategy, or leave it out to compare all");
    for (const JsonCursor& element : list->elements()) {
        if (element.json() == "all")
            addPredefined(scenario);
        else
            scenario.strategies.push_back(strategyFromJson(element, scenario.cluster.gpusPerNode));
    }
    std::set<std::string> names;
    for (const Strategy& strategy : scenario.strategies)
        if (!strategy.name.empty() && !names.insert(strategy.name).second)
            list->complain("holds two strategies named \"" + strategy.name.substr(0, 60) + "\"", "each name once");
}

void applyAdapters(const JsonCursor& root, Scenario& scenario)
{
    if (!scenario.training.lora || scenario.model.layers.empty())
        return;
    collecting(root, [&] {
        scenario.model = applyLora(scenario.model, *scenario.training.lora, scenario.file,
                                   root.pointer() + "/training/lora/target_modules");
    });
}

/// The scenarios that figures are over: this one with their changes.
void readOverScenarios(const JsonCursor& root, const JsonCursor& published, Scenario& scenario)
{
    for (std::size_t i = 0; i < scenario.published.size(); ++i) {
        PublishedFigure& figure = scenario.published[i];
        if (figure.overChanges.empty())
            continue;
        Json changed = root.json();
        changed.erase("published");
        changed.merge_patch(Json::parse(figure.overChanges));
        const JsonCursor changes = *published.elements()[i].find("over_changes");
        if (changed.contains("published"))
            changes.complain("changes \"published\"", "changes of what is planned");
        else
            collecting(changes, [&] {
                figure.overScenario = std::make_shared<const Scenario>(scenarioFromJson(changed, scenario.file));
            });
    }
}

/// Whether the cluster is one that ships, but for its numbers of GPUs and nodes.
bool shipsButForSize(const Cluster& cluster)
{
    if (!contains(clusterIds(), cluster.id))
        return false;
    Cluster shipped = readCluster(cluster.id);
    shipped.nodes = cluster.nodes;
    shipped.gpusPerNode = cluster.gpusPerNode;
    return toJson(shipped) == toJson(cluster);
}

} // namespace

Scenario scenarioFromJson(const Json& json, const std::string& file)
{
    Findings findings(file);
    const JsonCursor root(json, findings);
    Scenario scenario;
    scenario.file = file;
    scenario.name = fs::path(file).stem().string();
    if (root.expectObject()) {
        root.rejectUnknownKeys(
            {"schema", "name", "question", "model", "cluster", "training", "strategies", "published"});
        const std::string schema = std::string("\"") + kSchema + "\"";
        if (const auto found = root.require("schema", schema); found && found->json() != kSchema)
            found->complain("is another format", schema);
        root.read("name", scenario.name);
        root.read("question", scenario.question);
        if (const auto training = root.find("training"))
            scenario.training = trainingFromJson(*training);
        if (const auto model = root.require("model", "an id, a path, or a Hugging Face config as an object"))
            readModelSection(*model, scenario);
        if (const auto cluster = root.require("cluster", "an id, a path, or a cluster as an object"))
            readClusterSection(*cluster, scenario);
        applyAdapters(root, scenario);
        readStrategies(root, scenario);
        if (const auto published = root.find("published")) {
            std::vector<std::string> names;
            for (const Strategy& strategy : scenario.strategies)
                names.push_back(strategy.name);
            scenario.published = publishedFromJson(*published, names);
            readOverScenarios(root, *published, scenario);
        }
    }
    findings.throwIfAny();
    return scenario;
}

Scenario readScenario(const std::string& path)
{
    return scenarioFromJson(parseJson(readTextFile(path), path), path);
}

Json toJson(const Scenario& scenario)
{
    Json json{{"schema", kSchema}, {"name", scenario.name}};
    if (!scenario.question.empty())
        json["question"] = scenario.question;
    if (!scenario.modelConfig.empty())
        json["model"] = Json::parse(scenario.modelConfig);
    else if (contains(modelIds(), scenario.model.id))
        json["model"] = scenario.model.id;
    else
        json["model"] = {{"path", fs::absolute(scenario.model.source).lexically_normal().string()}};
    if (shipsButForSize(scenario.cluster))
        json["cluster"] = {{"id", scenario.cluster.id},
                           {"nodes", scenario.cluster.nodes},
                           {"gpus_per_node", scenario.cluster.gpusPerNode}};
    else
        json["cluster"] = toJson(scenario.cluster);
    json["training"] = toJson(scenario.training);
    json["strategies"] = Json::array();
    for (const Strategy& strategy : scenario.strategies) {
        const bool asPredefined = strategyByName(strategy.name, scenario.cluster.gpusPerNode) == strategy;
        json["strategies"].push_back(asPredefined ? Json(strategy.name) : toJson(strategy));
    }
    if (!scenario.published.empty()) {
        json["published"] = Json::array();
        for (const PublishedFigure& figure : scenario.published)
            json["published"].push_back(toJson(figure));
    }
    return json;
}

} // namespace shardwright
