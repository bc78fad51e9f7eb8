#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace rwkvx::test {

struct XmlElement {
  std::string name;
  std::map<std::string, std::string> attributes;
  std::string text;  ///< directly inside, without that of children
  size_t depth = 0;
};

/// Elements in document order. Throws std::runtime_error where the document is not well-formed, as far as
/// that goes without DTDs, CDATA and comments.
std::vector<XmlElement> parse_xml(std::string_view document);

}  // namespace rwkvx::test
