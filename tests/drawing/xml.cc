#include "drawing/xml.h"

#include <stdexcept>

namespace rwkvx::test {
namespace {

class Parser {
 public:
  explicit Parser(std::string_view document) : rest_(document) {}

  std::vector<XmlElement> parse() {
    if (rest_.starts_with("<?xml ")) rest_.remove_prefix(find("?>") + 2);
    skip_space();
    do {
      if (rest_.starts_with("</")) {
        close();
      } else if (rest_.starts_with("<")) {
        open();
      } else if (!stack_.empty()) {
        elements_[stack_.back()].text += characters(find("<"));
      } else {
        wrong("text outside the root");
      }
    } while (!stack_.empty());
    skip_space();
    if (!rest_.empty()) wrong("something behind the root");
    return std::move(elements_);
  }

 private:
  [[noreturn]] void wrong(const std::string& what) const {
    throw std::runtime_error(what + " before '" + std::string(rest_.substr(0, 40)) + "'");
  }
  size_t find(std::string_view what) const {
    const size_t at = rest_.find(what);
    if (at == rest_.npos) wrong("no " + std::string(what));
    return at;
  }
  void skip_space() { rest_.remove_prefix(std::min(rest_.find_first_not_of(" \n"), rest_.size())); }
  void expect(std::string_view what) {
    if (!rest_.starts_with(what)) wrong("expected " + std::string(what));
    rest_.remove_prefix(what.size());
  }
  std::string name() {
    size_t n = 0;
    while (n < rest_.size() && (std::isalnum(static_cast<unsigned char>(rest_[n])) || rest_[n] == '-')) ++n;
    if (n == 0 || std::isdigit(static_cast<unsigned char>(rest_[0]))) wrong("expected a name");
    std::string out(rest_.substr(0, n));
    rest_.remove_prefix(n);
    return out;
  }
  /// The next `n` bytes with entities resolved.
  std::string characters(size_t n) {
    std::string out;
    std::string_view text = rest_.substr(0, n);
    while (!text.empty()) {
      const auto c = static_cast<unsigned char>(text.front());
      if (c == '<' || (c < 0x20 && c != '\n' && c != '\t')) wrong("a character that must be escaped");
      if (c != '&') {
        out += text.front();
        text.remove_prefix(1);
        continue;
      }
      bool known = false;
      for (const auto& [entity, value] : {std::pair("&amp;", '&'), std::pair("&lt;", '<'),
                                          std::pair("&gt;", '>'), std::pair("&quot;", '"')}) {
        if (!text.starts_with(entity)) continue;
        out += value;
        text.remove_prefix(std::string_view(entity).size());
        known = true;
        break;
      }
      if (!known) wrong("an unknown entity");
    }
    rest_.remove_prefix(n);
    return out;
  }
  void open() {
    expect("<");
    XmlElement element;
    element.name = name();
    element.depth = stack_.size();
    skip_space();
    while (!rest_.starts_with(">") && !rest_.starts_with("/>")) {
      const std::string key = name();
      expect("=\"");
      if (!element.attributes.emplace(key, characters(find("\""))).second) wrong(key + " twice");
      expect("\"");
      skip_space();
    }
    elements_.push_back(std::move(element));
    if (rest_.starts_with("/>")) {
      expect("/>");
    } else {
      expect(">");
      stack_.push_back(elements_.size() - 1);
    }
  }
  void close() {
    expect("</");
    if (stack_.empty() || name() != elements_[stack_.back()].name) wrong("a closing tag that closes nothing");
    stack_.pop_back();
    expect(">");
  }

  std::string_view rest_;
  std::vector<XmlElement> elements_;
  std::vector<size_t> stack_;
};

}  // namespace

std::vector<XmlElement> parse_xml(std::string_view document) { return Parser(document).parse(); }

}  // namespace rwkvx::test
