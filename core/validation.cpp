#include "core/validation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "core/json_cursor.hpp"

namespace shardwright {

namespace {

constexpr double kOnePercent = 0.01;
constexpr double kFifteenPercent = 0.15;

std::string_view textOf(Tolerance tolerance)
{
    switch (tolerance) {
    case Tolerance::Exact: return "exact";
    case Tolerance::OnePercent: return "1 %";
    case Tolerance::FifteenPercent: return "15 %";
    case Tolerance::ForInformation: break;
    }
    return "for information";
}

/// A figure of the prediction by its path; NaN where the plan does not say it.
double predicted(const Json& prediction, const std::string& pointer)
{
    const Json::json_pointer place(pointer);
    if (!prediction.contains(place) || !prediction.at(place).is_number())
        return std::numeric_limits<double>::quiet_NaN();
    return prediction.at(place).get<double>();
}

const MeasuredPlace* placeOf(const RankMeasurement& rank, Place place)
{
    const auto found = std::find_if(rank.places.begin(), rank.places.end(),
                                    [place](const MeasuredPlace& each) { return each.place == place; });
    return found == rank.places.end() ? nullptr : &*found;
}

double peakOf(const RankMeasurement& rank, Place place)
{
    const MeasuredPlace* found = placeOf(rank, place);
    return found == nullptr ? 0 : found->peak.asDouble();
}

std::string nameOfOp(const ExecutablePlan& plan, std::int64_t index)
{
    if (index < 0 || index >= static_cast<std::int64_t>(plan.schedule.ops.size()))
        return "no operation";
    const Op& op = plan.schedule.ops[static_cast<std::size_t>(index)];
    const std::string layer = op.layer >= 0 ? fmt::format(", layer {}", op.layer) : "";
    return nameOf(op.kind) == nameOf(op.phase)
               ? fmt::format("{}{}", nameOf(op.kind), layer)
               : fmt::format("{} of the {}{}", nameOf(op.kind), nameOf(op.phase), layer);
}

class Validator {
public:
    Validator(const ExecutablePlan& plan, const Measurement& measurement) : m_plan(plan), m_measurement(measurement)
    {
        m_most = &*std::max_element(measurement.ranks.begin(), measurement.ranks.end(),
                                    [](const RankMeasurement& a, const RankMeasurement& b) {
                                        return peakOf(a, Place::Gpu) < peakOf(b, Place::Gpu);
                                    });
    }

    ValidationReport run(bool timeCounts)
    {
        if (m_measurement.steps < m_measurement.firstSteadyStep)
            m_report.notJudged = fmt::format("needs {} steps: the plan is of a step behind the warm-up, with all that "
                                             "first steps make and keep; {} {} done",
                                             m_measurement.firstSteadyStep, m_measurement.steps,
                                             m_measurement.steps == 1 ? "was" : "were");
        deviceMemory();
        otherMemory();
        traffic();
        ranksAlike();
        row("step time", "s", predicted(m_plan.prediction, "/step/seconds"), m_measurement.secondsPerStep,
            timeCounts ? Tolerance::FifteenPercent : Tolerance::ForInformation,
            timeCounts ? "" : "counts on a calibrated machine, for steps over 0.2 s");
        return std::move(m_report);
    }

private:
    void row(std::string quantity, std::string unit, double expected, double measured, Tolerance tolerance,
             std::string remark = {})
    {
        if (std::isnan(expected)) {
            tolerance = Tolerance::ForInformation;
            expected = 0;
            remark = "the plan does not predict it";
        }
        m_report.rows.push_back(
            {std::move(quantity), std::move(unit), expected, measured, tolerance, std::move(remark), 0});
    }

    void deviceMemory()
    {
        const Json& prediction = m_plan.prediction;
        const MeasuredPlace* gpu = placeOf(*m_most, Place::Gpu);
        static const MeasuredPlace kNothing;
        const MeasuredPlace& device = gpu == nullptr ? kNothing : *gpu;
        const auto held = [&](Category category) {
            return device.heldByCategory[static_cast<std::size_t>(category)].asDouble();
        };
        row("parameters held, device", "B", predicted(prediction, "/states/parameters_bytes"),
            held(Category::Parameters), Tolerance::Exact);
        row("master parameters held, device", "B", predicted(prediction, "/states/master_parameters_bytes"),
            held(Category::MasterParameters), Tolerance::Exact);
        row("optimizer states held, device", "B", predicted(prediction, "/states/optimizer_states_bytes"),
            held(Category::OptimizerStates), Tolerance::Exact);
        row("held between steps, device", "B", predicted(prediction, "/gpu/held_bytes"), device.held.asDouble(),
            Tolerance::Exact);
        row("peak, device", "B", predicted(prediction, "/gpu/peak_allocated_bytes"), device.peak.asDouble(),
            Tolerance::OnePercent, "measured in " + nameOfOp(m_plan, device.peakOp));
        for (std::size_t i = 0; i < kCategoryCount; ++i) {
            const std::string name(nameOf(static_cast<Category>(i)));
            const double expected = predicted(prediction, "/gpu/by_category/" + name);
            const double measured = device.atPeak[i].asDouble();
            if (expected != 0 || measured != 0)
                row("  " + name + " at the peak", "B", expected, measured, Tolerance::OnePercent);
        }
    }

    void otherMemory()
    {
        const Json& prediction = m_plan.prediction;
        row("host memory, pinned", "B", predicted(prediction, "/host/pinned_bytes_per_rank"),
            peakOf(*m_most, Place::HostPinned), Tolerance::Exact);
        row("host memory, pageable", "B", predicted(prediction, "/host/pageable_bytes_per_rank"),
            peakOf(*m_most, Place::HostPageable), Tolerance::Exact);
        double files = 0;
        double read = 0;
        double written = 0;
        for (const RankMeasurement& rank : m_measurement.ranks)
            if (rank.rank < m_plan.ranksPerNode) {
                files += rank.nvmeFiles.asDouble();
                read += rank.nvmeRead.asDouble();
                written += rank.nvmeWritten.asDouble();
            }
        const double share = solo() ? static_cast<double>(m_plan.ranksPerNode) : 1;
        row("NVMe, a node", "B", predicted(prediction, "/nvme/bytes_per_node") / share, files, Tolerance::Exact);
        row("NVMe read a step, a node", "B", predicted(prediction, "/nvme/read_bytes_per_step") / share, read,
            Tolerance::Exact);
        row("NVMe written a step, a node", "B", predicted(prediction, "/nvme/write_bytes_per_step") / share, written,
            Tolerance::Exact);
        hostLink("host to device a step", "host_to_device_bytes", &RankMeasurement::hostToDevice);
        hostLink("device to host a step", "device_to_host_bytes", &RankMeasurement::deviceToHost);
    }

    /// What a plan says of a rank: the last entry at or before it; NaN where it says nothing of single ranks.
    double predictedLink(std::int64_t rank, const std::string& key) const
    {
        double bytes = std::numeric_limits<double>::quiet_NaN();
        const Json links = m_plan.prediction.value(Json::json_pointer("/traffic/host_link_by_rank"), Json::array());
        for (const Json& entry : links)
            if (entry.value("from_rank", std::int64_t{0}) <= rank)
                bytes = entry.value(key, bytes);
        return bytes;
    }

    /// The plan's figure is the first rank's. Others may keep shorter stretches, or tensors whose ends are another
    /// rank's: each is held to its own, and the one furthest from it has a row.
    void hostLink(const std::string& name, const std::string& key, Bytes RankMeasurement::*moved)
    {
        const std::vector<RankMeasurement>& ranks = m_measurement.ranks;
        const auto first = std::min_element(ranks.begin(), ranks.end(),
                                            [](const auto& one, const auto& other) { return one.rank < other.rank; });
        const double expected = predicted(m_plan.prediction, "/traffic/" + key);
        const auto expectedOf = [&](const RankMeasurement& rank) {
            const double own = predictedLink(rank.rank, key);
            return std::isnan(own) ? expected : own;
        };
        const auto off = [&](const RankMeasurement& rank) {
            return std::abs((rank.*moved).asDouble() - expectedOf(rank));
        };
        row(name, "B", expectedOf(*first), ((*first).*moved).asDouble(), Tolerance::Exact);
        const RankMeasurement* furthest = nullptr; // of those that move something else than the first
        for (const RankMeasurement& rank : ranks)
            if (rank.*moved != (*first).*moved || expectedOf(rank) != expectedOf(*first))
                furthest = furthest == nullptr || off(rank) > off(*furthest) ? &rank : furthest;
        if (furthest == nullptr)
            return;
        const bool told = !std::isnan(predictedLink(furthest->rank, key));
        row("  of the rank furthest from its plan", "B", expectedOf(*furthest), (furthest->*moved).asDouble(),
            told ? Tolerance::Exact : Tolerance::ForInformation,
            told ? fmt::format("rank {}", furthest->rank)
                 : fmt::format("rank {}; the plan is that of rank {}", furthest->rank, first->rank));
    }

    bool solo() const { return m_measurement.ranks.size() == 1 && m_plan.ranks > 1; }

    struct Sum {
        double count = 0, bytes = 0, sent = 0;
    };

    /// Of one collective, over the ranks that were measured: the most calls and bytes of any, the mean of what was
    /// sent.
    Sum measuredOf(const std::string& op, const std::string& group, const std::string& payload) const
    {
        Sum sum;
        for (const RankMeasurement& rank : m_measurement.ranks)
            for (const MeasuredCollective& each : rank.collectives)
                if (nameOf(each.op) == op && each.group == group && each.payload == payload) {
                    sum.count = std::max(sum.count, static_cast<double>(each.count));
                    sum.bytes = std::max(sum.bytes, each.payloadBytes.asDouble());
                    sum.sent += each.sentBytes.asDouble() / static_cast<double>(m_measurement.ranks.size());
                }
        return sum;
    }

    void traffic()
    {
        std::vector<std::string> told;
        const Json collectives = m_plan.prediction.value(Json::json_pointer("/traffic/collectives"), Json::array());
        for (const Json& each : collectives) {
            const std::string op = each.value("op", "");
            const std::string group = each.value("group", "");
            const std::string payload = each.value("payload", "");
            const std::string name = fmt::format("{} of {} over {}", op, payload, group);
            const Sum measured = measuredOf(op, group, payload);
            told.push_back(name);
            row(name, "calls", each.value("count", 0.0), measured.count, Tolerance::Exact);
            row("  tensors", "B", each.value("bytes", 0.0), measured.bytes, Tolerance::Exact);
            // Rings cut what does not divide into unequal pieces, and the plan says whole bytes a GPU: up to one too
            // many on each way around, of which an all-reduce has two.
            const double sent = each.value("sent_bytes_per_gpu", 0.0);
            const double ways = op == nameOf(OpKind::AllReduce) ? 2 : 1;
            row("  sent, mean of the ranks", "B", sent, measured.sent, Tolerance::Exact);
            ValidationRow& sentRow = m_report.rows.back();
            sentRow.rounding = ways * each.value("count", 0.0);
            if (sent != measured.sent && sentRow.within())
                sentRow.remark = "less than a byte a call and way: the plan rounds";
        }
        for (const MeasuredCollective& each : m_most->collectives) {
            const std::string name = fmt::format("{} of {} over {}", nameOf(each.op), each.payload, each.group);
            if (each.ranks > 1 && std::find(told.begin(), told.end(), name) == told.end())
                row(name, "calls", 0, static_cast<double>(each.count), Tolerance::Exact, "not in the plan");
        }
    }

    /// Ranks that need other memory than the one with the most, though the plan is the view of all of them.
    void ranksAlike()
    {
        double least = peakOf(*m_most, Place::Gpu);
        for (const RankMeasurement& rank : m_measurement.ranks)
            least = std::min(least, peakOf(rank, Place::Gpu));
        if (m_measurement.ranks.size() > 1)
            row("peak of the rank with the least, device", "B",
                predicted(m_plan.prediction, "/gpu/peak_allocated_bytes"), least, Tolerance::ForInformation,
                "the plan is that of the rank with the most");
    }

    const ExecutablePlan& m_plan;
    const Measurement& m_measurement;
    const RankMeasurement* m_most = nullptr;
    ValidationReport m_report;
};

std::string numberText(double value, const std::string& unit)
{
    if (unit == "s")
        return fmt::format("{:.4g}", value);
    return fmt::format("{:.0f}", value);
}

} // namespace

double ValidationRow::error() const
{
    if (predicted == measured)
        return 0;
    return measured == 0 ? std::numeric_limits<double>::infinity() : (predicted - measured) / measured;
}

bool ValidationRow::within() const
{
    switch (tolerance) {
    case Tolerance::Exact: return predicted == measured || std::abs(predicted - measured) < rounding;
    case Tolerance::OnePercent: return std::abs(error()) <= kOnePercent;
    case Tolerance::FifteenPercent: return std::abs(error()) <= kFifteenPercent;
    case Tolerance::ForInformation: break;
    }
    return true;
}

bool ValidationReport::within() const
{
    return notJudged.empty() &&
           std::all_of(rows.begin(), rows.end(), [](const ValidationRow& row) { return row.within(); });
}

ValidationReport validate(const ExecutablePlan& plan, const Measurement& measurement, bool timeCounts)
{
    return Validator(plan, measurement).run(timeCounts);
}

std::string tableOf(const ValidationReport& report)
{
    std::size_t width = 8;
    for (const ValidationRow& row : report.rows)
        width = std::max(width, row.quantity.size());
    std::string text = fmt::format("{:<{}}  {:>16}  {:>16} {:<5}  {:>8}  {}\n", "", width, "predicted", "measured", "",
                                   "error", "tolerance");
    for (const ValidationRow& row : report.rows) {
        const double error = row.error();
        const std::string errorText = std::isinf(error) ? "-"
                                      : error == 0      ? "0"
                                                        : fmt::format("{:+.2f} %", 100 * error);
        const char* verdict = row.tolerance == Tolerance::ForInformation ? ""
                              : !report.notJudged.empty()                ? "not judged"
                              : row.within()                             ? "ok"
                                                                         : "OUT";
        text += fmt::format("{:<{}}  {:>16}  {:>16} {:<5}  {:>8}  {}{}{}{}\n", row.quantity, width,
                            numberText(row.predicted, row.unit), numberText(row.measured, row.unit), row.unit,
                            errorText, verdict, *verdict != '\0' ? ", " : "", textOf(row.tolerance),
                            row.remark.empty() ? "" : "; " + row.remark);
    }
    if (!report.notJudged.empty())
        text += fmt::format("not judged: {}\n", report.notJudged);
    return text;
}

Json toJson(const ValidationReport& report)
{
    Json rows = Json::array();
    for (const ValidationRow& row : report.rows) {
        Json entry = Json::object();
        entry["quantity"] = row.quantity;
        entry["unit"] = row.unit;
        entry["predicted"] = row.predicted;
        entry["measured"] = row.measured;
        entry["tolerance"] = textOf(row.tolerance);
        entry["within"] = report.notJudged.empty() ? Json(row.within()) : Json();
        entry["remark"] = row.remark;
        rows.push_back(std::move(entry));
    }
    Json json = Json::object();
    json["within"] = report.within();
    json["not_judged"] = report.notJudged.empty() ? Json() : Json(report.notJudged);
    json["rows"] = std::move(rows);
    return json;
}

} // namespace shardwright
