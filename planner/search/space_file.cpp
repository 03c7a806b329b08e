// Reading and writing a declared space. One list of fields serves both.

#include <set>

#include <fmt/format.h>

#include "core/json_fields.hpp"
#include "planner/search/model_scaling.hpp"
#include "planner/search/space.hpp"

namespace shardwright::search {

namespace {

constexpr const char* kSchema = "shardwright-space/1";
constexpr std::int64_t kMost = 1000000000;
constexpr double kMostImbalance = 1000;
constexpr std::size_t kMostValues = 4096; // of one axis

/// Reads the elements of one axis by `value`, which complains and gives nothing where an element is wrong.
template <typename T, typename Value> void readAxis(const JsonCursor& cursor, std::vector<T>& target, Value value)
{
    if (cursor.json() == "auto")
        return;
    if (!cursor.json().is_array()) {
        cursor.complain("is neither a list nor \"auto\"", "a list of values, or \"auto\"");
        return;
    }
    const auto elements = cursor.elements();
    if (elements.empty() || elements.size() > kMostValues) {
        cursor.complain(fmt::format("has {} values", elements.size()), fmt::format("1 to {}", kMostValues));
        return;
    }
    target.clear();
    std::set<T> seen;
    for (const JsonCursor& element : elements) {
        const std::optional<T> read = value(element);
        if (!read)
            continue;
        if (!seen.insert(*read).second)
            element.complain("stands there twice", "every value once");
        target.push_back(*read);
    }
}

std::optional<std::int64_t> groupSize(const JsonCursor& element)
{
    if (element.json() == "all")
        return kWholeGroup;
    if (element.json() == "node")
        return kNodeGroup;
    if (element.json().is_number())
        return element.asInteger(1, kMost);
    element.complain("is no shard group", "\"all\", \"node\" or a number of ranks");
    return std::nullopt;
}

class AxisReader {
public:
    AxisReader(FieldReader& fields, const JsonCursor& cursor) : m_fields(fields), m_cursor(cursor) {}

    void operator()(const char* key, std::int64_t& target)
    {
        m_fields.known(key);
        if (const auto member = m_cursor.find(key); member && member->json() != "auto")
            target = member->asInteger(1, kMost).value_or(target);
    }
    void operator()(const char* key, std::vector<std::int64_t>& target)
    {
        axis(key, target, [](const JsonCursor& element) { return element.asInteger(1, kMost); });
    }
    void operator()(const char* key, std::vector<bool>& target)
    {
        axis(key, target, [](const JsonCursor& element) { return element.asBool(); });
    }
    template <typename E>
    requires std::is_enum_v<E>
    void operator()(const char* key, std::vector<E>& target)
    {
        axis(key, target, [](const JsonCursor& element) { return element.template asEnum<E>(); });
    }
    void groups(const char* key, std::vector<std::int64_t>& target) { axis(key, target, groupSize); }
    void fromZero(const char* key, std::vector<std::int64_t>& target)
    {
        axis(key, target, [](const JsonCursor& element) { return element.asInteger(0, kMost); });
    }
    void operator()(const char* key, double& target)
    {
        m_fields.known(key);
        if (const auto member = m_cursor.find(key); member && member->json() != "auto")
            target = member->asNumber(1, kMostImbalance).value_or(target);
    }
    void operator()(const char* key, Range& target)
    {
        m_fields.known(key);
        const auto member = m_cursor.find(key);
        if (!member || member->json() == "auto" || !member->expectObject())
            return;
        FieldReader fields(*member);
        fields.field("from", target.from, std::int64_t{1}, kMost);
        fields.field("to", target.to, std::int64_t{1}, kMost);
        fields.field("step", target.step, std::int64_t{1}, kMost);
        fields.finish();
        if (target.to < target.from)
            member->complain(fmt::format("goes from {} to {}", target.from, target.to), "\"to\" not below \"from\"");
    }

private:
    template <typename T, typename Value> void axis(const char* key, std::vector<T>& target, Value value)
    {
        m_fields.known(key);
        if (const auto member = m_cursor.find(key))
            readAxis(*member, target, value);
    }

    FieldReader& m_fields;
    const JsonCursor& m_cursor;
};

class AxisWriter {
public:
    explicit AxisWriter(Json& json) : m_json(json) {}

    template <typename T> void operator()(const char* key, const T& value) { m_json[key] = value; }
    template <typename E>
    requires std::is_enum_v<E>
    void operator()(const char* key, const std::vector<E>& values)
    {
        Json list = Json::array();
        for (const E value : values)
            list.push_back(nameOf(value));
        m_json[key] = list;
    }
    void groups(const char* key, const std::vector<std::int64_t>& values)
    {
        Json list = Json::array();
        for (const std::int64_t value : values) {
            if (value == kWholeGroup)
                list.push_back("all");
            else if (value == kNodeGroup)
                list.push_back("node");
            else
                list.push_back(value);
        }
        m_json[key] = list;
    }
    void fromZero(const char* key, const std::vector<std::int64_t>& values) { m_json[key] = values; }
    void operator()(const char* key, const Range& range)
    {
        m_json[key] = {{"from", range.from}, {"to", range.to}, {"step", range.step}};
    }

private:
    Json& m_json;
};

template <typename Visitor, typename SpaceType> void visitAxes(Visitor& axis, SpaceType& space)
{
    axis("global_batch", space.globalBatch);
    axis("gpus", space.gpus);
    axis("frameworks", space.frameworks);
    axis("sharding", space.sharding);
    axis("offload", space.offload);
    axis("zero_plus_plus", space.zeroPlusPlus);
    axis.groups("shard_group", space.shardGroup);
    axis("tensor", space.tensor);
    axis("sequence_parallel", space.sequenceParallel);
    axis("pipeline", space.pipeline);
    axis("virtual_stages", space.virtualStages);
    axis("context", space.context);
    axis("context_exchange", space.exchange);
    axis("expert", space.expert);
    axis.fromZero("expert_tensor", space.expertTensor);
    axis("expert_imbalance", space.expertImbalance);
    axis("activation_checkpointing", space.checkpointing);
    axis("checkpoint_every", space.checkpointEvery);
    axis("checkpoint_segment", space.checkpointSegment);
    axis("micro_batch", space.microBatch);
    axis("sequence_length", space.sequence);
    axis("layers", space.layers);
    axis("heads", space.heads);
    axis("micro_batch_range", space.microBatches);
}

/// Widths that the scenario's model can be brought to.
void checkHeads(const JsonCursor& cursor, const Model& model)
{
    const auto member = cursor.find("heads");
    if (!member || !member->json().is_array())
        return;
    for (const JsonCursor& element : member->elements())
        if (element.json().is_number_integer() && !withHeads(model, element.json().get<std::int64_t>())) {
            const std::vector<std::int64_t> usual = usualHeads(model);
            element.complain(fmt::format("is {} heads, at which {}'s dimensions do not keep their proportions",
                                         element.json().get<std::int64_t>(), model.id),
                             fmt::format("{}", fmt::join(usual, ", ")));
        }
}

/// The cluster gives parts of one node and whole nodes, no more than it has.
void checkGpus(const JsonCursor& cursor, const Cluster& cluster)
{
    const auto member = cursor.find("gpus");
    if (!member || !member->json().is_array())
        return;
    for (const JsonCursor& element : member->elements()) {
        if (!element.json().is_number_integer())
            continue; // told already
        const auto gpus = element.json().get<std::int64_t>();
        if (gpus > cluster.gpus() || (gpus > cluster.gpusPerNode && gpus % cluster.gpusPerNode != 0))
            element.complain(fmt::format("is {} GPUs", gpus),
                             fmt::format("up to {} in whole nodes of {}, or a part of one node", cluster.gpus(),
                                         cluster.gpusPerNode));
    }
}

} // namespace

Space spaceFromJson(const Json& json, const std::string& file, const Scenario& scenario, Objective objective)
{
    Findings findings(file);
    const JsonCursor cursor(json, findings);
    Space space;
    if (cursor.expectObject()) {
        const auto batch = cursor.find("global_batch");
        const bool declared =
            batch && batch->json().is_number_integer() && batch->json() >= 1 && batch->json() <= kMost;
        space = defaultSpace(scenario, objective, declared ? batch->json().get<std::int64_t>() : 0);
        FieldReader fields(cursor);
        fields.known("schema");
        if (const auto schema = cursor.require("schema", fmt::format("\"{}\"", kSchema)))
            if (schema->json() != kSchema)
                schema->complain("is not the schema of a space", fmt::format("\"{}\"", kSchema));
        AxisReader axis(fields, cursor);
        visitAxes(axis, space);
        fields.finish();
        checkGpus(cursor, scenario.cluster);
        checkHeads(cursor, scenario.model);
    }
    findings.throwIfAny();
    return space;
}

Json toJson(const Space& space)
{
    Json json{{"schema", kSchema}};
    AxisWriter axis(json);
    visitAxes(axis, space);
    return json;
}

} // namespace shardwright::search
