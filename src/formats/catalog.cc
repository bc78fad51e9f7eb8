#include "formats/catalog.h"
