#include "core/measurement.hpp"

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

constexpr const char* kKind = "shardwright-measurement";

Json categories(const CategoryBytes& bytes)
{
    Json json = Json::object();
    for (std::size_t i = 0; i < kCategoryCount; ++i)
        json[std::string(nameOf(static_cast<Category>(i)))] = bytes[i].count();
    return json;
}

void read(const JsonCursor& cursor, const std::string& key, Bytes& target)
{
    std::int64_t count = 0;
    cursor.read(key, count);
    target = Bytes(count);
}

void read(const JsonCursor& cursor, const std::string& key, CategoryBytes& target)
{
    const auto object = cursor.require(key, "bytes by category");
    if (!object || !object->expectObject())
        return;
    for (std::size_t i = 0; i < kCategoryCount; ++i)
        read(*object, std::string(nameOf(static_cast<Category>(i))), target[i]);
}

template <typename T, typename Write> Json listOf(const std::vector<T>& items, Write write)
{
    Json list = Json::array();
    for (const T& item : items)
        list.push_back(write(item));
    return list;
}

template <typename T, typename Read>
void readList(const JsonCursor& cursor, const std::string& key, std::vector<T>& target, Read readOne)
{
    const auto list = cursor.require(key, "a list");
    if (!list || !list->expectArray())
        return;
    for (const JsonCursor& element : list->elements())
        if (element.expectObject())
            readOne(element, target.emplace_back());
}

Json toJson(const RankMeasurement& rank)
{
    Json json = Json::object();
    json["rank"] = rank.rank;
    json["places"] = listOf(rank.places, [](const MeasuredPlace& place) {
        Json entry = Json::object();
        entry["place"] = nameOf(place.place);
        entry["peak_bytes"] = place.peak.count();
        entry["at_peak"] = categories(place.atPeak);
        entry["peak_op"] = place.peakOp;
        entry["held_bytes"] = place.held.count();
        entry["held"] = categories(place.heldByCategory);
        return entry;
    });
    json["collectives"] = listOf(rank.collectives, [](const MeasuredCollective& item) {
        Json entry = Json::object();
        entry["op"] = nameOf(item.op);
        entry["group"] = item.group;
        entry["payload"] = item.payload;
        entry["ranks"] = item.ranks;
        entry["count"] = item.count;
        entry["bytes"] = item.payloadBytes.count();
        entry["sent_bytes"] = item.sentBytes.count();
        return entry;
    });
    json["operations"] = listOf(rank.operations, [](const MeasuredOperation& item) {
        Json entry = Json::object();
        entry["op"] = nameOf(item.op);
        entry["phase"] = nameOf(item.phase);
        entry["count"] = item.count;
        entry["seconds"] = item.seconds;
        return entry;
    });
    json["curve"] = listOf(rank.curve, [](const CurvePoint& point) {
        Json entry = Json::object();
        entry["op"] = point.op;
        entry["phase"] = nameOf(point.phase);
        entry["layer"] = point.layer;
        entry["bytes"] = point.total.count();
        entry["by_category"] = categories(point.byCategory);
        return entry;
    });
    json["host_to_device_bytes"] = rank.hostToDevice.count();
    json["device_to_host_bytes"] = rank.deviceToHost.count();
    json["nvme_read_bytes"] = rank.nvmeRead.count();
    json["nvme_written_bytes"] = rank.nvmeWritten.count();
    json["nvme_file_bytes"] = rank.nvmeFiles.count();
    json["resident_set_bytes"] = rank.residentSetSize.count();
    json["scalar_messages"] = rank.scalarMessages;
    json["scalar_bytes"] = rank.scalarBytes.count();
    return json;
}

void readRank(const JsonCursor& cursor, RankMeasurement& rank)
{
    cursor.read("rank", rank.rank);
    readList(cursor, "places", rank.places, [](const JsonCursor& entry, MeasuredPlace& place) {
        entry.read("place", place.place);
        read(entry, "peak_bytes", place.peak);
        read(entry, "at_peak", place.atPeak);
        entry.read("peak_op", place.peakOp, -1);
        read(entry, "held_bytes", place.held);
        read(entry, "held", place.heldByCategory);
    });
    readList(cursor, "collectives", rank.collectives, [](const JsonCursor& entry, MeasuredCollective& item) {
        entry.read("op", item.op);
        entry.read("group", item.group);
        entry.read("payload", item.payload);
        entry.read("ranks", item.ranks, 1);
        entry.read("count", item.count);
        read(entry, "bytes", item.payloadBytes);
        read(entry, "sent_bytes", item.sentBytes);
    });
    readList(cursor, "operations", rank.operations, [](const JsonCursor& entry, MeasuredOperation& item) {
        entry.read("op", item.op);
        entry.read("phase", item.phase);
        entry.read("count", item.count);
        entry.read("seconds", item.seconds, 0.0, std::numeric_limits<double>::max());
    });
    readList(cursor, "curve", rank.curve, [](const JsonCursor& entry, CurvePoint& point) {
        std::int64_t op = -1;
        std::int64_t layer = -1;
        entry.read("op", op, -1, std::numeric_limits<OpId>::max());
        entry.read("phase", point.phase);
        entry.read("layer", layer, -1, std::numeric_limits<std::int32_t>::max());
        read(entry, "bytes", point.total);
        read(entry, "by_category", point.byCategory);
        point.op = static_cast<OpId>(op);
        point.layer = static_cast<std::int32_t>(layer);
    });
    read(cursor, "host_to_device_bytes", rank.hostToDevice);
    read(cursor, "device_to_host_bytes", rank.deviceToHost);
    read(cursor, "nvme_read_bytes", rank.nvmeRead);
    read(cursor, "nvme_written_bytes", rank.nvmeWritten);
    read(cursor, "nvme_file_bytes", rank.nvmeFiles);
    read(cursor, "resident_set_bytes", rank.residentSetSize);
    cursor.read("scalar_messages", rank.scalarMessages);
    read(cursor, "scalar_bytes", rank.scalarBytes);
}

void readNumbers(const JsonCursor& cursor, const std::string& key, std::vector<double>& target)
{
    const auto list = cursor.require(key, "a list of numbers");
    if (!list || !list->expectArray())
        return;
    for (const JsonCursor& element : list->elements())
        if (element.json().is_null()) // JSON has no word for what a loss becomes that diverges
            target.push_back(std::numeric_limits<double>::quiet_NaN());
        else if (const auto value =
                     element.asNumber(std::numeric_limits<double>::lowest(), std::numeric_limits<double>::max()))
            target.push_back(*value);
}

} // namespace

Json toJson(const Measurement& measurement)
{
    Json json = Json::object();
    json["kind"] = kKind;
    json["version"] = kMeasurementFormat;
    json["plan"] = measurement.plan;
    json["scenario"] = measurement.scenario;
    json["strategy"] = measurement.strategy;
    json["transport"] = measurement.transport;
    json["device"] = measurement.device;
    json["machine"] = measurement.machine;
    json["date"] = measurement.date;
    json["complete"] = measurement.complete;
    json["steps"] = measurement.steps;
    json["first_steady_step"] = measurement.firstSteadyStep;
    json["losses"] = measurement.losses;
    json["step_seconds"] = measurement.stepSeconds;
    json["seconds_per_step"] = measurement.secondsPerStep;
    json["tokens_per_second"] = measurement.tokensPerSecond;
    json["ranks"] = listOf(measurement.ranks, [](const RankMeasurement& rank) { return toJson(rank); });
    return json;
}

Measurement readMeasurement(const std::string& path)
{
    return measurementFromText(readTextFile(path), path);
}

Measurement measurementFromText(const std::string& text, const std::string& path)
{
    const Json json = parseJson(text, path);
    if (!json.is_object() || json.value("kind", Json()) != kKind)
        throw InputError(path, "/kind", "this is no measurement", "a file that shardrun wrote (measurement.json)");
    if (json.value("version", Json()) != kMeasurementFormat)
        throw InputError(path, "/version", "a measurement of another format: " + json.value("version", Json()).dump(),
                         std::to_string(kMeasurementFormat));
    Findings findings(path);
    const JsonCursor cursor(json, findings);
    Measurement measurement;
    cursor.read("plan", measurement.plan);
    cursor.read("scenario", measurement.scenario);
    cursor.read("strategy", measurement.strategy);
    cursor.read("transport", measurement.transport);
    cursor.read("device", measurement.device);
    cursor.read("machine", measurement.machine);
    cursor.read("date", measurement.date);
    cursor.read("complete", measurement.complete);
    cursor.read("steps", measurement.steps);
    cursor.read("first_steady_step", measurement.firstSteadyStep, 1);
    readNumbers(cursor, "losses", measurement.losses);
    readNumbers(cursor, "step_seconds", measurement.stepSeconds);
    cursor.read("seconds_per_step", measurement.secondsPerStep, 0.0, std::numeric_limits<double>::max());
    cursor.read("tokens_per_second", measurement.tokensPerSecond, 0.0, std::numeric_limits<double>::max());
    readList(cursor, "ranks", measurement.ranks, readRank);
    if (measurement.ranks.empty())
        cursor.complain("no rank was measured", "at least one in \"ranks\"");
    findings.throwIfAny();
    return measurement;
}

} // namespace shardwright
