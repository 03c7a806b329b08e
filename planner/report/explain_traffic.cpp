#include <fmt/format.h>

#include "planner/report/explain_report.hpp"
#include "planner/report/number_format.hpp"
#include "planner/report/table.hpp"
#include "planner/report/text_layout.hpp"

namespace shardwright {

namespace {

std::string collectivesText(const Traffic& traffic, const OutputStyle& style)
{
    Table table({{"collective", "", Align::Left, 0, 0},
                 {"what", "", Align::Left, 12, 0, true},
                 {"group", "", Align::Left, 0, 2},
                 {"ranks", "", Align::Right, 0, 0},
                 {"nodes", "", Align::Right, 0, 1},
                 {"times", "per step", Align::Right, 0, 0},
                 {"whole tensors", "GB/step", Align::Right, 0, 0},
                 {"sent by a GPU", "GB/step", Align::Right, 0, 0}});
    for (const CollectiveTraffic& one : traffic.collectives)
        table.addRow({std::string(nameOf(one.op)), one.payload, one.group, grouped(one.ranks), grouped(one.nodes),
                      grouped(one.count), gigabytes(one.payloadBytes), gigabytes(one.sentBytesPerGpu)});
    return table.empty() ? std::string() : table.text(style) + '\n';
}

} // namespace

std::string explainTraffic(const Scenario& scenario, const Plan& plan, const OutputStyle& style)
{
    const Traffic& traffic = plan.traffic;
    const std::string psi(glyph(style, "Ψ", "psi"));
    Table table({{"figure", "", Align::Left, 20, 0, true},
                 {"GB/step", "", Align::Right, 0, 0},
                 {"how it comes about", "", Align::Left, 30, 0, true}});
    table.addRow({Cell("sent by a GPU", Ink::Strong), Cell(gigabytes(traffic.sentBytesPerGpu), Ink::Strong),
                  "a gather or scatter over n ranks sends (n-1)/n of the tensor, an all-reduce twice that"});
    if (scenario.cluster.nodes > 1) {
        table.addRow({"of it inside the node", gigabytes(traffic.intraNodeBytesPerGpu), "to GPUs of the same node"});
        table.addRow({"of it between nodes", gigabytes(traffic.interNodeBytesPerGpu), ""});
        table.addRow({"leaving a node, at least", gigabytes(traffic.interNodeBytesPerNode),
                      "(k-1)/k of each tensor over k nodes"});
        table.addRow({"leaving a node, flat ring", gigabytes(traffic.interNodeRingBytesPerNode),
                      "what one NCCL ring over all ranks puts on the node's NICs"});
    }
    if (traffic.hostToDeviceBytes > 0_B || traffic.deviceToHostBytes > 0_B) {
        table.addRow({"host to GPU", gigabytes(traffic.hostToDeviceBytes), "over PCIe, per GPU"});
        table.addRow({"GPU to host", gigabytes(traffic.deviceToHostBytes), "over PCIe, per GPU"});
    }
    std::string volume =
        fmt::format("{}, one gather or scatter of all parameters = 1: {} as implemented, {} in the literature.", psi,
                    hundredths(traffic.psi), hundredths(traffic.psiTextbook));
    if (scenario.cluster.nodes > 1)
        volume += fmt::format(" Of it {} crosses nodes.", hundredths(traffic.psiInterNode));
    if (!traffic.psiDifference.empty())
        volume += " The difference: " + traffic.psiDifference + ".";
    return section(style, "Traffic of an optimizer step",
                   collectivesText(traffic, style) + table.text(style) + paragraph(style, volume));
}

} // namespace shardwright
